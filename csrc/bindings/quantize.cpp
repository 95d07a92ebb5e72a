#include "executor/quantize.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "runtime/faults.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

using Source = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

bool quantize(const std::string& format, const Source& data, const Target& codes, const Target& scales, int bits,
              std::int64_t group, const std::string& rounding, int num_threads) {
    QuantizeTask task;
    task.format = format == "f32" ? Format::kF32 : format == "f16" ? Format::kF16 : Format::kBF16;
    task.rounding = rounding == "f16"    ? ScaleRounding::kF16
                    : rounding == "bf16" ? ScaleRounding::kBF16
                                         : ScaleRounding::kF32;
    task.rows = static_cast<std::int64_t>(data.shape(0));
    task.columns = static_cast<std::int64_t>(data.shape(1));
    task.bits = bits;
    task.group = group;
    const bool named = (format == "f32" || format == "f16" || format == "bf16") &&
                       (rounding == "f32" || rounding == "f16" || rounding == "bf16");
    if (!named || task.rows < 1 || task.columns < 1 || bits < 2 || (bits > 4 && bits != 8) || group < 1 ||
        group > 1 << 16 || num_threads < 1 || num_threads > 1024) {
        throw std::invalid_argument("this cannot be quantized");
    }
    const std::int64_t width = bits == 8 ? task.columns : (task.columns + 1) / 2;
    const std::int64_t groups = (task.columns - 1) / group + 1;
    const auto fits = [&](const Target& array, std::int64_t columns, std::size_t item) {
        return static_cast<std::int64_t>(array.shape(0)) == task.rows &&
               static_cast<std::int64_t>(array.shape(1)) == columns && array.itemsize() == item;
    };
    if (data.itemsize() != (format == "f32" ? 4 : 2) || !fits(codes, width, 1) ||
        !fits(scales, groups, rounding == "f16" ? 2 : 4)) {
        throw std::invalid_argument("the arrays of a quantization have the wrong shapes or dtypes");
    }
    task.data = static_cast<const std::uint8_t*>(data.data());
    task.codes = static_cast<std::uint8_t*>(codes.data());
    task.scales = static_cast<std::uint8_t*>(scales.data());
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    ThreadPool pool(num_threads);
    return quantize_matrix(task, pool);
}

}  // namespace

void bind_quantize(nb::module_& module) {
    module.def("quantize", &quantize, "format"_a, "data"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(),
               nb::kw_only(), "bits"_a, "group"_a, "rounding"_a, "num_threads"_a);
}

}  // namespace windlass
