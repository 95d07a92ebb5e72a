// One function per subject; each adds its part to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace windlass {

void bind_cpu(nanobind::module_& module);
void bind_program(nanobind::module_& module);
void bind_executor(nanobind::module_& module);
void bind_quantize(nanobind::module_& module);
void bind_sampling(nanobind::module_& module);
void bind_text(nanobind::module_& module);
void bind_faults(nanobind::module_& module);  // with WINDLASS_TESTING only

}  // namespace windlass
