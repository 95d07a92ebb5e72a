#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

NB_MODULE(_core, module) {
#if !defined(WINDLASS_TESTING)
    // Objects alive at interpreter exit are no news to users, and must not write to their stderr.
    nanobind::set_leak_warnings(false);
#endif
    windlass::bind_cpu(module);
    windlass::bind_program(module);
    windlass::bind_executor(module);
}
