#include "executor/program.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

using Triple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

View view(const Triple& triple) { return {std::get<0>(triple), std::get<1>(triple), std::get<2>(triple)}; }

ActivationKind kind_named(const std::string& name) {
    if (name == "silu") return ActivationKind::kSilu;
    if (name == "gelu") return ActivationKind::kGelu;
    if (name == "gelu_tanh") return ActivationKind::kGeluTanh;
    if (name == "relu") return ActivationKind::kRelu;
    if (name == "clamped_swiglu") return ActivationKind::kClampedSwiglu;
    throw std::invalid_argument("program: unknown activation " + name);
}

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
        .def("embed_position",
             [](Program& self, Triple out, int table) { self.ops.push_back(EmbedPosition{view(out), table}); })
        .def("rms_norm", [](Program& self, Triple out, Triple x, int weight,
                            float eps) { self.ops.push_back(RmsNorm{view(out), view(x), weight, eps}); })
        .def("layer_norm", [](Program& self, Triple out, Triple x, int weight, int bias,
                              float eps) { self.ops.push_back(LayerNorm{view(out), view(x), weight, bias, eps}); })
        .def("head_norm", [](Program& self, Triple x, int weight, std::int64_t head_dim, float eps,
                             bool centered) { self.ops.push_back(HeadNorm{view(x), weight, head_dim, eps, centered}); })
        .def("linear", [](Program& self, Triple out, Triple x, int weight,
                          int bias) { self.ops.push_back(Linear{view(out), view(x), weight, bias}); })
        .def("head_linear",
             [](Program& self, Triple out, Triple x, int weight, std::int64_t num_heads) {
                 self.ops.push_back(HeadLinear{view(out), view(x), weight, num_heads});
             })
        .def("join_heads",
             [](Program& self, Triple out, Triple left, Triple right, std::int64_t num_heads) {
                 self.ops.push_back(JoinHeads{view(out), view(left), view(right), num_heads});
             })
        .def("rope", [](Program& self, Triple x, int table, std::int64_t head_dim,
                        std::int64_t rotary_dim) { self.ops.push_back(Rope{view(x), table, head_dim, rotary_dim}); })
        .def("write_kv", [](Program& self, std::int64_t layer, Triple k,
                            Triple v) { self.ops.push_back(WriteKV{layer, view(k), view(v)}); })
        .def("attention",
             [](Program& self, Triple out, Triple q, std::int64_t layer, int num_heads, float scale,
                std::int64_t window, std::int64_t chunk, float softcap, int sinks, bool causal) {
                 self.ops.push_back(
                     Attention{view(out), view(q), layer, num_heads, scale, window, chunk, softcap, sinks, causal});
             })
        .def("activation",
             [](Program& self, Triple out, Triple x, const std::string& kind) {
                 self.ops.push_back(Activation{view(out), view(x), kind_named(kind)});
             })
        .def("gated_activation",
             [](Program& self, Triple out, Triple x, const std::string& kind) {
                 self.ops.push_back(GatedActivation{view(out), view(x), kind_named(kind)});
             })
        .def("route",
             [](Program& self, Triple out, Triple x, std::int64_t top_k, bool sigmoid, bool normalize, float scale,
                int bias, std::int64_t num_groups, std::int64_t top_groups, bool top2_sum) {
                 self.ops.push_back(Route{view(out), view(x), top_k, sigmoid, normalize, scale, bias, num_groups,
                                          top_groups, top2_sum});
             })
        .def("experts",
             [](Program& self, Triple out, Triple x, Triple shares, int gate_up, int down, const std::string& kind,
                int gate_up_bias, int down_bias, bool scale_input) {
                 self.ops.push_back(Experts{view(out), view(x), view(shares), gate_up, down, kind_named(kind),
                                            gate_up_bias, down_bias, scale_input});
             })
        .def("add", [](Program& self, Triple x, Triple y) { self.ops.push_back(Add{view(x), view(y)}); })
        .def("add_bias", [](Program& self, Triple x, int bias) { self.ops.push_back(AddBias{view(x), bias}); })
        .def("scale", [](Program& self, Triple x, float factor) { self.ops.push_back(Scale{view(x), factor}); })
        .def("sigmoid_gate",
             [](Program& self, Triple x, Triple gate) { self.ops.push_back(SigmoidGate{view(x), view(gate)}); })
        .def("logits", [](Program& self, Triple x, int weight,
                          float softcap) { self.ops.push_back(Logits{view(x), weight, softcap}); })
        .def("hidden_states", [](Program& self, Triple x) { self.ops.push_back(HiddenStates{view(x)}); });
}

}  // namespace windlass
