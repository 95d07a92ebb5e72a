#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

NB_MODULE(_core, module) {
    // Objects alive at interpreter exit are no news to users, and must not write to their stderr.
    nanobind::set_leak_warnings(false);
#if defined(WINDLASS_TESTING)
    windlass::bind_faults(module);
#endif
    windlass::bind_cpu(module);
    windlass::bind_program(module);
    windlass::bind_executor(module);
    windlass::bind_quantize(module);
    windlass::bind_sampling(module);
    windlass::bind_text(module);
}
