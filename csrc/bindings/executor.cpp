#include "executor/executor.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "bindings/bindings.h"
#include "runtime/faults.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

using AnyArray = nb::ndarray<nb::ro, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ResultArray = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Format format_named(const std::string& name) {
    if (name == "f32") return Format::kF32;
    if (name == "f16") return Format::kF16;
    if (name == "bf16") return Format::kBF16;
    if (name == "int8") return Format::kInt8;
    if (name == "int4") return Format::kInt4;
    if (name == "fp8") return Format::kFp8;
    throw std::invalid_argument("unknown weight format " + name);
}

KVType kv_type_named(const std::string& name) {
    if (name == "f32") return KVType::kF32;
    if (name == "f16") return KVType::kF16;
    if (name == "bf16") return KVType::kBF16;
    if (name == "int8") return KVType::kInt8;
    if (name == "int16") return KVType::kInt16;
    throw std::invalid_argument("the KV cache can be f32, f16, bf16, int16 or int8, not " + name);
}

nb::dlpack::dtype data_type(Format format) {
    switch (format) {
        case Format::kF32:
            return nb::dtype<float>();
        case Format::kF16:
            return {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
        case Format::kBF16:
            return nb::dtype<std::uint16_t>();
        case Format::kInt8:
            return nb::dtype<std::int8_t>();
        case Format::kInt4:
        case Format::kFp8:
            return nb::dtype<std::uint8_t>();
        case Format::kInt6:
        case Format::kInt5:
            break;
    }
    throw std::invalid_argument("unknown weight format");
}

// The array as [rows, columns]; a vector is one row. Refuses any other shape or element type.
ArrayView matrix_view(const char* what, const AnyArray& array, nb::dlpack::dtype type, std::int64_t rows,
                      std::int64_t columns) {
    const bool is_vector = array.ndim() == 1 && rows == 1;
    const bool fits = is_vector ? static_cast<std::int64_t>(array.shape(0)) == columns
                                : array.ndim() == 2 && static_cast<std::int64_t>(array.shape(0)) == rows &&
                                      static_cast<std::int64_t>(array.shape(1)) == columns;
    if (!fits) {
        throw std::invalid_argument(std::string("the ") + what + " of a weight must be [" + std::to_string(rows) +
                                    ", " + std::to_string(columns) + "]");
    }
    if (array.dtype() != type) throw std::invalid_argument(std::string("the ") + what + " have the wrong dtype");
    const std::int64_t item = static_cast<std::int64_t>(array.itemsize());
    ArrayView view;
    view.data = static_cast<const std::uint8_t*>(array.data());
    view.row_stride = is_vector ? 0 : array.stride(0) * item;
    view.column_stride = array.stride(is_vector ? 0 : 1) * item;
    return view;
}

// Of a source that has its groups.
void set_factors(SourceTensor& source, std::int64_t superblock, const AnyArray& scale_factors,
                 const std::optional<AnyArray>& minimum_factors) {
    if (source.group < 1 || superblock < 1 || kActivationColumns % source.group != 0 ||
        superblock % kActivationColumns != 0 || source.columns % superblock != 0) {
        throw std::invalid_argument("groups must divide " + std::to_string(kActivationColumns) +
                                    ", which must divide superblocks, of which a row must be made");
    }
    source.superblock = superblock;
    const std::int64_t blocks = (source.columns - 1) / superblock + 1;
    const nb::dlpack::dtype type = data_type(Format::kF16);
    source.scale_factors = matrix_view("scale factors", scale_factors, type, source.rows, blocks);
    if (source.has_minima) {
        source.minimum_factors = matrix_view("minimum factors", *minimum_factors, type, source.rows, blocks);
    }
}

const std::int32_t* checked_order(const Indices& order, std::int64_t columns) {
    const auto fits = [&](std::int32_t column) { return column >= 0 && column < columns; };
    if (static_cast<std::int64_t>(order.size()) != columns ||
        !std::all_of(order.data(), order.data() + order.size(), fits)) {
        throw std::invalid_argument("the order of a weight has the number of each column");
    }
    return order.data();
}

void set_weight(Executor& self, std::int64_t index, const std::string& format, std::int64_t rows, std::int64_t columns,
                const AnyArray& data, std::int64_t group, const std::optional<AnyArray>& scales,
                const std::optional<AnyArray>& zeros, const std::optional<AnyArray>& minima, std::int64_t superblock,
                const std::optional<AnyArray>& scale_factors, const std::optional<AnyArray>& minimum_factors,
                const std::optional<Indices>& order) {
    SourceTensor source;
    source.format = format_named(format);
    source.rows = rows;
    source.columns = columns;
    if (rows < 1 || columns < 1) throw std::invalid_argument("a weight is empty");
    const bool int4 = source.format == Format::kInt4;
    const bool fp8 = source.format == Format::kFp8;
    const bool grouped = int4 || fp8 || source.format == Format::kInt8;
    const bool has_zeros = zeros.has_value(), has_minima = minima.has_value();
    const bool fits = grouped ? scales.has_value() && group >= 1 && has_zeros == (int4 && !has_minima) &&
                                    !(fp8 && (has_minima || superblock != 0 || order.has_value()))
                              : !scales.has_value() && !has_zeros && !has_minima && !order.has_value();
    if (!fits) {
        throw std::invalid_argument(
            "int8, int4 and fp8 weights have groups and scales, and of these int8 and int4 may have an order, and have "
            "minima or, if int4, zeros; others have none of these");
    }
    if (fp8 && group % kBlockColumns != 0 && group < columns) {
        throw std::invalid_argument("groups of fp8 weights must be whole rows, or multiples of " +
                                    std::to_string(kBlockColumns));
    }
    if (scale_factors.has_value() != (superblock != 0) ||
        minimum_factors.has_value() != (superblock != 0 && has_minima)) {
        throw std::invalid_argument("with superblocks, and only then, scales and minima have factors");
    }
    source.data = matrix_view("codes", data, data_type(source.format), rows, int4 ? (columns + 1) / 2 : columns);
    if (grouped) {
        source.group = group;
        const std::int64_t groups = (columns - 1) / group + 1;
        const bool half = !fp8 && scales->dtype() == data_type(Format::kF16);
        if (!fp8) source.scale_type = superblock != 0 ? ScaleType::kProduct : half ? ScaleType::kF16 : ScaleType::kF32;
        const nb::dlpack::dtype type =
            superblock != 0 ? nb::dtype<std::int8_t>() : data_type(half ? Format::kF16 : Format::kF32);
        source.scales = matrix_view("scales", *scales, type, rows, groups);
        if (has_zeros) source.zeros = matrix_view("zeros", *zeros, nb::dtype<std::uint8_t>(), rows, groups);
        source.has_minima = has_minima;
        if (has_minima) source.minima = matrix_view("minima", *minima, type, rows, groups);
    }
    if (superblock != 0) set_factors(source, superblock, *scale_factors, minimum_factors);
    if (order.has_value()) source.order = checked_order(*order, columns);
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    self.set_weight(index, source);
}

// An adapter in the hands of Python. Closing it lets go of the adapter, which a step that has begun still holds.
struct AdapterHandle {
    std::shared_ptr<Adapter> adapter;
};

AdapterHandle make_adapter(const Executor& self) { return {self.make_adapter()}; }

SourceTensor float_source(const std::string& format, const AnyArray& data) {
    if (data.ndim() != 2) throw std::invalid_argument("an adapter's matrices have two axes");
    SourceTensor source;
    source.format = format_named(format);
    if (source.format == Format::kInt8 || source.format == Format::kInt4) {
        throw std::invalid_argument("an adapter's matrices are floats");
    }
    source.rows = static_cast<std::int64_t>(data.shape(0));
    source.columns = static_cast<std::int64_t>(data.shape(1));
    if (source.rows < 1 || source.columns < 1) throw std::invalid_argument("a matrix of an adapter is empty");
    source.data = matrix_view("numbers", data, data_type(source.format), source.rows, source.columns);
    return source;
}

void set_a(const AdapterHandle& self, std::int64_t weight, const std::string& format, const AnyArray& data) {
    const SourceTensor source = float_source(format, data);
    const std::shared_ptr<Adapter> adapter = self.adapter;
    if (!adapter) throw std::invalid_argument("the adapter is closed");
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    adapter->set_a(weight, source);
}

void add_piece(const AdapterHandle& self, std::int64_t weight, std::int64_t first_row, std::int64_t first_rank,
               float scale, const std::string& format, const AnyArray& data) {
    const SourceTensor source = float_source(format, data);
    const std::shared_ptr<Adapter> adapter = self.adapter;
    if (!adapter) throw std::invalid_argument("the adapter is closed");
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    adapter->add_piece(weight, first_row, first_rank, scale, source);
}

PackIdentity identity_of(const nb::bytes& bytes) {
    PackIdentity identity;
    if (bytes.size() != identity.size()) throw std::invalid_argument("an identity has 32 bytes");
    std::memcpy(identity.data(), bytes.c_str(), identity.size());
    return identity;
}

bool map_weights(Executor& self, int descriptor, const nb::bytes& identity) {
    const PackIdentity wanted = identity_of(identity);
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    return self.map_weights(descriptor, wanted);
}

// Raises OSError where `write` throws std::system_error.
template <typename Write>
void write_to_file(Write&& write) {
    int error = 0;
    {
        const FaultScope fallible;
        const nb::gil_scoped_release released;
        try {
            write();
        } catch (const std::system_error& failure) {
            error = failure.code().value();
        }
    }
    if (error == 0) return;
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

void write_piece(Executor& self, int descriptor, std::int64_t index) {
    write_to_file([&] { self.write_piece(descriptor, index); });
}

void write_header(Executor& self, int descriptor, const nb::bytes& identity) {
    const PackIdentity made_from = identity_of(identity);
    write_to_file([&] { self.write_header(descriptor, made_from); });
}

void set_rope(Executor& self, std::int64_t index, const FloatTable& cos, const FloatTable& sin) {
    if (cos.shape(0) != sin.shape(0) || cos.shape(1) != sin.shape(1)) {
        throw std::invalid_argument("the cosines and sines of a rotary table differ in shape");
    }
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    self.set_rope(index, cos.data(), sin.data(), static_cast<std::int64_t>(cos.shape(0)),
                  static_cast<std::int64_t>(cos.shape(1)));
}

void set_rope_frequencies(Executor& self, std::int64_t index, const Floats& frequencies) {
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    self.set_rope_frequencies(index, {frequencies.data(), frequencies.size()});
}

std::span<const std::int32_t> span(const Indices& array) { return {array.data(), array.size()}; }

bool run(Executor& self, const Indices& token_ids, const Indices& positions, const Indices& token_starts,
         const Indices& page_ids, const Indices& page_starts, const Indices& logit_rows, const ResultArray& result,
         const nb::tuple& adapters, const std::optional<Indices>& sequence_adapters) {
    if (result.shape(0) != logit_rows.size() || static_cast<std::int64_t>(result.shape(1)) != self.output_width()) {
        throw std::invalid_argument("the result must be [logit rows, " + std::to_string(self.output_width()) + "]");
    }
    std::vector<std::shared_ptr<const Adapter>> held;
    for (const nb::handle handle : adapters) held.push_back(nb::cast<const AdapterHandle&>(handle).adapter);
    BatchView batch = {span(token_ids), span(positions),   span(token_starts),
                       span(page_ids),  span(page_starts), span(logit_rows)};
    batch.adapters = held;
    if (sequence_adapters) batch.sequence_adapters = span(*sequence_adapters);
    const FaultScope fallible;
    const nb::gil_scoped_release released;
    return self.run(batch, result.data());
}

}  // namespace

void bind_executor(nb::module_& module) {
    nb::class_<AdapterHandle>(module, "Adapter")
        .def("set_a", &set_a, "weight"_a, "format"_a, "data"_a)
        .def("add_piece", &add_piece, "weight"_a, "first_row"_a, "first_rank"_a, "scale"_a, "format"_a, "data"_a)
        .def("close", [](AdapterHandle& self) { self.adapter.reset(); })
        .def_prop_ro("nbytes",
                     [](const AdapterHandle& self) { return self.adapter ? self.adapter->bytes() : std::size_t{0}; });

    nb::class_<Executor>(module, "Executor")
        .def(
            "__init__",
            [](Executor* self, const Program& program, std::int64_t num_pages, std::int64_t max_tokens,
               std::int64_t max_positions, int num_threads, const std::string& kv_dtype, const std::string& kernels,
               Executor* threads_of) {
                const ExecutorOptions options = {
                    num_pages, max_tokens, max_positions, num_threads, kv_type_named(kv_dtype), kernels};
                const FaultScope fallible;
                new (self) Executor(program, options, threads_of == nullptr ? nullptr : threads_of->pool());
            },
            "program"_a, nb::kw_only(), "num_pages"_a, "max_tokens"_a, "max_positions"_a, "num_threads"_a, "kv_dtype"_a,
            "kernels"_a, "threads_of"_a.none())
        .def("set_weight", &set_weight, "index"_a, "format"_a, "rows"_a, "columns"_a, "data"_a, "group"_a,
             "scales"_a.none(), "zeros"_a.none(), "minima"_a.none() = nb::none(), "superblock"_a = 0,
             "scale_factors"_a.none() = nb::none(), "minimum_factors"_a.none() = nb::none(),
             "order"_a.none() = nb::none())
        .def("map_weights", &map_weights, "descriptor"_a, "identity"_a)
        .def("num_pieces", &Executor::num_pieces)
        .def("write_piece", &write_piece, "descriptor"_a, "index"_a)
        .def("write_header", &write_header, "descriptor"_a, "identity"_a)
        .def("set_rope_frequencies", &set_rope_frequencies, "index"_a, "frequencies"_a)
        .def("set_rope", &set_rope, "index"_a, "cos"_a, "sin"_a)
        .def("run", &run, "token_ids"_a.noconvert(), "positions"_a.noconvert(), "token_starts"_a.noconvert(),
             "page_ids"_a.noconvert(), "page_starts"_a.noconvert(), "logit_rows"_a.noconvert(), "result"_a.noconvert(),
             "adapters"_a = nb::tuple(), "sequence_adapters"_a.noconvert().none() = nb::none())
        .def("make_adapter", &make_adapter)
        .def("cancel", &Executor::cancel)
        .def("clear_cancel", &Executor::clear_cancel)
        .def("close", &Executor::close, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("progress", &Executor::progress)
        .def_prop_ro("num_threads", &Executor::num_threads)
        .def_prop_ro("kernels", &Executor::kernels)
        .def_prop_ro("kv_cache_bytes", &Executor::kv_cache_bytes)
        .def_prop_ro("weight_bytes", &Executor::weight_bytes);

    module.def(
        "kv_bytes_per_page",
        [](std::int64_t num_layers, int num_kv_heads, int head_dim, const std::string& kv_dtype) {
            return KVCache::Shape{num_layers, num_kv_heads, head_dim, kv_type_named(kv_dtype)}.page_bytes();
        },
        "num_layers"_a, "num_kv_heads"_a, "head_dim"_a, "kv_dtype"_a);
}

}  // namespace windlass
