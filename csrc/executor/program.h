// A forward pass as the executor sees it: the operations of windlass.program, names replaced by numbers.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels/table.h"

namespace windlass {

// Columns offset .. offset + width of a numbered buffer [tokens, width].
struct View {
    std::int64_t buffer = 0;
    std::int64_t offset = 0;
    std::int64_t width = 0;
};

inline constexpr int kNoWeight = -1;

// The fields mean what windlass/program/ops.py says; weights are indices into Program::weights, or kNoWeight where
// there may be none.
struct Embed {
    View out;
    int table;
};
struct EmbedPosition {
    View out;
    int table;
};
struct RmsNorm {
    View out, x;
    int weight;
    float eps;
};
struct LayerNorm {
    View out, x;
    int weight;
    int bias;  // or kNoWeight
    float eps;
};
struct HeadNorm {
    View x;
    int weight;  // or kNoWeight
    std::int64_t head_dim;
    float eps;
    bool centered;
};
struct Linear {
    View out, x;
    int weight;
    int bias;  // or kNoWeight
};
struct HeadLinear {
    View out, x;
    int weight;
    std::int64_t num_heads;
};
struct JoinHeads {
    View out, left, right;
    std::int64_t num_heads;
};
struct Rope {
    View x;
    int table;
    std::int64_t head_dim, rotary_dim;
};
struct WriteKV {
    std::int64_t layer;
    View k, v;
};
struct Attention {
    View out, q;
    std::int64_t layer;
    int num_heads;
    float scale;
    std::int64_t window = 0;  // or 0
    std::int64_t chunk = 0;   // or 0
    float softcap = 0;        // or 0
    int sinks = kNoWeight;    // or kNoWeight
    bool causal = true;
};
struct Activation {
    View out, x;
    ActivationKind kind;
};
struct GatedActivation {
    View out, x;
    ActivationKind kind;
};
struct Route {
    View out, x;
    std::int64_t top_k;
    bool sigmoid;  // scores are sigmoids, or else a softmax
    bool normalize;
    float scale;
    int bias;  // or kNoWeight
    std::int64_t num_groups, top_groups;
    bool top2_sum;  // the score of a group, or else its best
};
struct Experts {
    View out, x, shares;
    int gate_up, down;
    ActivationKind kind;
    int gate_up_bias, down_bias;  // or kNoWeight
    bool scale_input;
};
struct Add {
    View x, y;
};
struct AddBias {
    View x;
    int bias;
};
struct Scale {
    View x;
    float factor;
};
struct SigmoidGate {
    View x, gate;
};
struct Logits {
    View x;
    int weight;
    float softcap;  // or 0
};
struct HiddenStates {
    View x;
};

using Op = std::variant<Embed, EmbedPosition, RmsNorm, LayerNorm, HeadNorm, Linear, HeadLinear, JoinHeads, Rope,
                        WriteKV, Attention, Activation, GatedActivation, Route, Experts, Add, AddBias, Scale,
                        SigmoidGate, Logits, HiddenStates>;

// Plain data, immutable once an executor has it. A vector weight [columns] has is_vector set and rows == 1.
struct Program {
    struct WeightShape {
        std::string name;
        std::int64_t rows, columns;
        bool is_vector;
    };
    std::vector<Op> ops;
    std::vector<WeightShape> weights;
    std::vector<std::int64_t> buffer_widths;
    std::int64_t num_ropes = 0;
    std::int64_t num_layers = 0;
    int num_kv_heads = 0;
    int head_dim = 0;
    std::int64_t vocab_size = 0;
};

}  // namespace windlass
