// A forward pass as the executor sees it: the operations of windlass.program, names replaced by numbers.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace windlass {

// Columns offset .. offset + width of a numbered buffer [tokens, width].
struct View {
    std::int64_t buffer = 0;
    std::int64_t offset = 0;
    std::int64_t width = 0;
};

inline constexpr int kNoWeight = -1;

// The fields mean what windlass/program/ops.py says; weights are indices into Program::weights.
struct Embed {
    View out;
    int table;
};
struct RmsNorm {
    View out, x;
    int weight;
    float eps;
};
struct HeadNorm {
    View x;
    int weight;
    std::int64_t head_dim;
    float eps;
};
struct Linear {
    View out, x;
    int weight;
    int bias;  // or kNoWeight
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
    std::int64_t window;  // or 0
};
struct GatedActivation {
    View out, x;
};
struct Add {
    View x, y;
};
struct Logits {
    View x;
    int weight;
};

using Op = std::variant<Embed, RmsNorm, HeadNorm, Linear, Rope, WriteKV, Attention, GatedActivation, Add, Logits>;

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
