#include "runtime/faults.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

constexpr std::pair<const char*, Fault> kFaults[] = {
    {"mapping", Fault::kMapping}, {"allocation", Fault::kAllocation}, {"thread", Fault::kThread},
    {"pack", Fault::kPack},       {"operation", Fault::kOperation},   {"piece", Fault::kPiece},
};

Fault fault_named(const std::string& name) {
    for (const auto& [known, fault] : kFaults) {
        if (name == known) return fault;
    }
    throw std::invalid_argument("there is no fault " + name);
}

}  // namespace

void bind_faults(nb::module_& module) {
    nb::module_ faults = module.def_submodule("faults", "Makes the native core fail, for tests.");
    faults.def(
        "arm", [](const std::string& kind, std::int64_t turn) { arm_fault(fault_named(kind), turn); }, "kind"_a,
        "turn"_a);
    faults.def("disarm", [] { arm_fault(Fault::kMapping, 0); });
    faults.def("fired", &fault_fired);
    // On stderr, at the end of the interpreter: what exists then that was made here.
    faults.def("report_leaks", [] { nb::set_leak_warnings(true); });
}

}  // namespace windlass
