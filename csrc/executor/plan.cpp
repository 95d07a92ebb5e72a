#include "executor/plan.h"

#include <algorithm>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

namespace windlass {
namespace {

constexpr std::int64_t kLineFloats = 16;

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument("program: " + reason); }

// Visits every operation: checks shapes, and notes when each buffer is first and last used.
class Checker {
  public:
    explicit Checker(const Program& program) : program_(program), uses_(program.buffer_widths.size()) {
        if (program.num_layers < 1 || program.num_kv_heads < 1 || program.head_dim < 1 || program.vocab_size < 1) {
            refuse("the numbers of layers, KV heads, head columns and vocabulary entries must be positive");
        }
        for (const std::int64_t width : program.buffer_widths) {
            if (width < 1) refuse("a buffer has no columns");
        }
        for (const Program::WeightShape& weight : program.weights) {
            if (weight.rows < 1 || weight.columns < 1) refuse("weight " + weight.name + " is empty");
        }
        rope_half_.resize(static_cast<std::size_t>(program.num_ropes), 0);
    }

    void check() {
        for (const Op& op : program_.ops) {
            std::visit([this](const auto& one) { check(one); }, op);
            ++now_;
        }
        if (output_width_ == 0) refuse("the last operation is neither Logits nor HiddenStates");
    }

    struct Use {
        std::optional<std::size_t> first;
        std::size_t last = 0;
    };
    const std::vector<Use>& uses() const { return uses_; }
    const std::vector<std::int64_t>& rope_half() const { return rope_half_; }
    int most_heads_per_kv_head() const { return most_heads_; }
    std::int64_t output_width() const { return output_width_; }
    std::int64_t most_positions() const { return most_positions_; }

  private:
    void view(const View& v) {
        if (v.buffer < 0 || v.buffer >= static_cast<std::int64_t>(program_.buffer_widths.size())) {
            refuse("there is no buffer " + std::to_string(v.buffer));
        }
        const std::size_t buffer = static_cast<std::size_t>(v.buffer);
        if (v.offset < 0 || v.width < 1 || v.offset > program_.buffer_widths[buffer] - v.width) {
            refuse("a value lies outside buffer " + std::to_string(v.buffer));
        }
        if (!uses_[buffer].first) uses_[buffer].first = now_;
        uses_[buffer].last = now_;
    }

    void separate(const View& out, const View& x) {
        view(out);
        view(x);
        if (out.buffer == x.buffer) refuse("an operation reads the buffer it writes");
    }

    void weight(int index, std::int64_t rows, std::int64_t columns, bool is_vector) {
        if (index < 0 || index >= static_cast<int>(program_.weights.size())) refuse("an operation names no weight");
        const Program::WeightShape& shape = program_.weights[static_cast<std::size_t>(index)];
        if (shape.is_vector != is_vector || shape.rows != rows || shape.columns != columns) {
            refuse("weight " + shape.name + " does not fit its operation");
        }
    }

    void vector(int index, std::int64_t columns) {
        if (index != kNoWeight) weight(index, 1, columns, true);
    }

    // Of a weight that may not exist.
    Program::WeightShape shape_of(int index) const {
        const bool known = index >= 0 && index < static_cast<int>(program_.weights.size());
        return known ? program_.weights[static_cast<std::size_t>(index)] : Program::WeightShape{};
    }

    void heads(const View& x, std::int64_t head_dim) {
        view(x);
        if (head_dim < 1 || x.width % head_dim != 0) refuse("a value is not a whole number of heads");
    }

    void layer(std::int64_t index) {
        if (index < 0 || index >= program_.num_layers) refuse("there is no layer " + std::to_string(index));
    }

    void check(const Embed& op) {
        view(op.out);
        weight(op.table, program_.vocab_size, op.out.width, false);
    }
    void check(const EmbedPosition& op) {
        view(op.out);
        const std::int64_t positions = shape_of(op.table).rows;
        weight(op.table, positions, op.out.width, false);
        most_positions_ = std::min(most_positions_, positions);
    }
    void row_by_row(const View& out, const View& x, const char* what) {
        separate(out, x);
        if (out.width != x.width) refuse(std::string(what) + " changes the width");
    }
    void check(const RmsNorm& op) {
        row_by_row(op.out, op.x, "RmsNorm");
        weight(op.weight, 1, op.x.width, true);
    }
    void check(const LayerNorm& op) {
        row_by_row(op.out, op.x, "LayerNorm");
        weight(op.weight, 1, op.x.width, true);
        vector(op.bias, op.x.width);
    }
    void check(const HeadNorm& op) {
        heads(op.x, op.head_dim);
        vector(op.weight, shape_of(op.weight).columns == op.x.width ? op.x.width : op.head_dim);
    }
    void check(const Linear& op) {
        separate(op.out, op.x);
        weight(op.weight, op.out.width, op.x.width, false);
        vector(op.bias, op.out.width);
    }
    void check(const JoinHeads& op) {
        separate(op.out, op.left);
        separate(op.out, op.right);
        if (op.num_heads < 1 || op.left.width % op.num_heads != 0 || op.right.width % op.num_heads != 0 ||
            op.out.width != op.left.width + op.right.width) {
            refuse("JoinHeads has values that are not so many heads");
        }
    }
    void check(const Rope& op) {
        heads(op.x, op.head_dim);
        if (op.table < 0 || op.table >= program_.num_ropes) refuse("there is no rotary table");
        if (op.rotary_dim < 2 || op.rotary_dim % 2 != 0 || op.rotary_dim > op.head_dim) refuse("odd rotary size");
        std::int64_t& half = rope_half_[static_cast<std::size_t>(op.table)];
        if (half != 0 && half != op.rotary_dim / 2) refuse("one rotary table is used with two sizes");
        half = op.rotary_dim / 2;
    }
    void check(const WriteKV& op) {
        view(op.k);
        view(op.v);
        layer(op.layer);
        const std::int64_t width = std::int64_t{program_.num_kv_heads} * program_.head_dim;
        if (op.k.width != width || op.v.width != width) refuse("keys or values do not fit the KV cache");
    }
    void check(const Attention& op) {
        separate(op.out, op.q);
        layer(op.layer);
        const std::int64_t width = std::int64_t{op.num_heads} * program_.head_dim;
        if (op.num_heads < 1 || op.num_heads % program_.num_kv_heads != 0 || op.q.width != width ||
            op.out.width != width || op.window < 0) {
            refuse("an attention operation does not fit the KV cache");
        }
        most_heads_ = std::max(most_heads_, op.num_heads / program_.num_kv_heads);
    }
    void check(const Activation& op) {
        row_by_row(op.out, op.x, "Activation");
        if (op.kind < ActivationKind::kSilu || op.kind > ActivationKind::kRelu) refuse("unknown activation");
    }
    void check(const GatedActivation& op) {
        separate(op.out, op.x);
        if (op.x.width != 2 * op.out.width) refuse("GatedActivation does not halve the width");
        gate(op.kind);
    }
    void gate(ActivationKind kind) {
        if (kind < ActivationKind::kSilu || kind > ActivationKind::kClampedSwiglu || kind == ActivationKind::kRelu) {
            refuse("unknown activation of a gate");
        }
    }
    void check(const Add& op) {
        view(op.x);
        view(op.y);
        if (op.x.width != op.y.width) refuse("Add of different widths");
    }
    void check(const AddBias& op) {
        view(op.x);
        weight(op.bias, 1, op.x.width, true);
    }
    void check(const Scale& op) { view(op.x); }
    void check(const SigmoidGate& op) {
        view(op.x);
        view(op.gate);
        if (op.gate.width != 1) refuse("the gate of a SigmoidGate has more than one column");
    }
    void check(const Logits& op) {
        view(op.x);
        weight(op.weight, program_.vocab_size, op.x.width, false);
        if (!(op.softcap >= 0)) refuse("a softcap is negative");
        result(program_.vocab_size);
    }
    void check(const HiddenStates& op) {
        view(op.x);
        result(op.x.width);
    }
    void result(std::int64_t width) {
        if (now_ + 1 != program_.ops.size()) refuse("Logits or HiddenStates are not the last operation");
        output_width_ = width;
    }

    const Program& program_;
    std::vector<Use> uses_;
    std::vector<std::int64_t> rope_half_;
    std::size_t now_ = 0;
    int most_heads_ = 1;
    std::int64_t output_width_ = 0;
    std::int64_t most_positions_ = std::numeric_limits<std::int64_t>::max();
};

// An odd number of cache lines, so that the rows of a tile do not compete for the same sets of the L1 cache.
std::int64_t row_stride(std::int64_t width) { return (((width + kLineFloats - 1) / kLineFloats) | 1) * kLineFloats; }

}  // namespace

Plan make_plan(const Program& program, std::int64_t max_tokens) {
    Checker checker(program);
    checker.check();

    Plan plan;
    plan.buffers.resize(program.buffer_widths.size());
    plan.most_heads_per_kv_head = checker.most_heads_per_kv_head();
    plan.rope_half = checker.rope_half();
    const std::vector<Checker::Use>& uses = checker.uses();
    const auto size_of = [&](std::size_t buffer) {
        const std::int64_t stride = row_stride(program.buffer_widths[buffer]);
        if (stride > std::numeric_limits<std::int64_t>::max() / 64 / max_tokens) throw std::bad_alloc();
        return static_cast<std::size_t>(stride * max_tokens);
    };
    // First fit: each buffer, in order of first use, goes to the lowest place that no buffer alive with it occupies.
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < uses.size(); ++i) {
        if (uses[i].first) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return uses[a].first < uses[b].first; });
    std::vector<std::size_t> placed;
    for (const std::size_t buffer : order) {
        std::vector<std::size_t> rivals;
        for (const std::size_t other : placed) {
            if (uses[other].last >= *uses[buffer].first) rivals.push_back(other);
        }
        std::sort(rivals.begin(), rivals.end(),
                  [&](std::size_t a, std::size_t b) { return plan.buffers[a].offset < plan.buffers[b].offset; });
        std::size_t offset = 0;
        for (const std::size_t other : rivals) {
            if (offset + size_of(buffer) <= plan.buffers[other].offset) break;
            offset = std::max(offset, plan.buffers[other].offset + size_of(other));
        }
        plan.buffers[buffer] = {offset, row_stride(program.buffer_widths[buffer])};
        plan.arena_floats = std::max(plan.arena_floats, offset + size_of(buffer));
        placed.push_back(buffer);
    }
    plan.widest = *std::max_element(program.buffer_widths.begin(), program.buffer_widths.end());
    plan.feeds_product.resize(program.ops.size());
    for (std::size_t i = 0; i + 1 < program.ops.size(); ++i) {
        const Linear* const next = std::get_if<Linear>(&program.ops[i + 1]);
        if (next == nullptr) continue;
        const Checker::Use& use = uses[static_cast<std::size_t>(next->x.buffer)];
        const bool whole = next->x.width == program.buffer_widths[static_cast<std::size_t>(next->x.buffer)];
        plan.feeds_product[i] = whole && use.first == i && use.last == i + 1;
    }
    plan.output_width = checker.output_width();
    plan.most_positions = checker.most_positions();
    if (const Logits* const logits = std::get_if<Logits>(&program.ops.back())) {
        plan.logit_input = {plan.arena_floats, row_stride(logits->x.width)};
        plan.arena_floats += static_cast<std::size_t>(plan.logit_input.stride * max_tokens);
    }
    return plan;
}

}  // namespace windlass
