#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "runtime/cpu.h"

namespace nb = nanobind;

namespace windlass {

void bind_cpu(nb::module_& module) {
    module.def("cpu_features", &cpu_feature_names);
    module.def("default_thread_count", &default_thread_count);
    module.def("available_kernels", [] {
        std::vector<std::string> names;
        for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
        return names;
    });
}

}  // namespace windlass
