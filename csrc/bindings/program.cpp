#include "executor/program.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

using Triple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

View view(const Triple& triple) { return {std::get<0>(triple), std::get<1>(triple), std::get<2>(triple)}; }

}  // namespace

// Values cross as (buffer, offset, width). The executor checks the whole program when it gets it.
void bind_program(nb::module_& module) {
    nb::class_<Program>(module, "Program")
        .def(
            "__init__",
            [](Program* self, std::int64_t num_ropes, std::int64_t num_layers, int num_kv_heads, int head_dim,
               std::int64_t vocab_size) {
                new (self) Program();
                self->num_ropes = num_ropes;
                self->num_layers = num_layers;
                self->num_kv_heads = num_kv_heads;
                self->head_dim = head_dim;
                self->vocab_size = vocab_size;
            },
            nb::kw_only(), "num_ropes"_a, "num_layers"_a, "num_kv_heads"_a, "head_dim"_a, "vocab_size"_a)
        .def("add_buffer", [](Program& self, std::int64_t width) { self.buffer_widths.push_back(width); })
        .def("add_weight", [](Program& self, std::string name, std::int64_t rows, std::int64_t columns,
                              bool is_vector) { self.weights.push_back({std::move(name), rows, columns, is_vector}); })
        .def("embed", [](Program& self, Triple out, int table) { self.ops.push_back(Embed{view(out), table}); })
        .def("rms_norm", [](Program& self, Triple out, Triple x, int weight,
                            float eps) { self.ops.push_back(RmsNorm{view(out), view(x), weight, eps}); })
        .def("head_norm", [](Program& self, Triple x, int weight, std::int64_t head_dim,
                             float eps) { self.ops.push_back(HeadNorm{view(x), weight, head_dim, eps}); })
        .def("linear", [](Program& self, Triple out, Triple x, int weight,
                          int bias) { self.ops.push_back(Linear{view(out), view(x), weight, bias}); })
        .def("rope", [](Program& self, Triple x, int table, std::int64_t head_dim,
                        std::int64_t rotary_dim) { self.ops.push_back(Rope{view(x), table, head_dim, rotary_dim}); })
        .def("write_kv", [](Program& self, std::int64_t layer, Triple k,
                            Triple v) { self.ops.push_back(WriteKV{layer, view(k), view(v)}); })
        .def("attention",
             [](Program& self, Triple out, Triple q, std::int64_t layer, int num_heads, float scale,
                std::int64_t window) {
                 self.ops.push_back(Attention{view(out), view(q), layer, num_heads, scale, window});
             })
        .def("silu_gate",
             [](Program& self, Triple out, Triple x) { self.ops.push_back(GatedActivation{view(out), view(x)}); })
        .def("add", [](Program& self, Triple x, Triple y) { self.ops.push_back(Add{view(x), view(y)}); })
        .def("logits", [](Program& self, Triple x, int weight) { self.ops.push_back(Logits{view(x), weight}); });
}

}  // namespace windlass
