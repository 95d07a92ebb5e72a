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
constexpr std::int64_t kMostExperts = 1 << 16;

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument("program: " + reason); }

// An odd number of cache lines, so that the rows of a tile do not compete for the same sets of the L1 cache.
std::int64_t row_stride(std::int64_t width) { return (((width + kLineFloats - 1) / kLineFloats) | 1) * kLineFloats; }

// Visits every operation: checks shapes, and notes when each buffer is first and last used.
class Checker {
  public:
    Checker(const Program& program, std::int64_t max_tokens)
        : program_(program),
          max_tokens_(max_tokens),
          uses_(program.buffer_widths.size()),
          routes_(program.buffer_widths.size(), nullptr) {
        if (program.num_layers < 1 || program.num_kv_heads < 1 || program.head_dim < 1 || program.vocab_size < 1) {
            refuse("the numbers of layers, KV heads, head columns and vocabulary entries must be positive");
        }
        for (const std::int64_t width : program.buffer_widths) {
            if (width < 1) refuse("a buffer has no columns");
        }
        for (const Program::WeightShape& weight : program.weights) {
            if (weight.rows < 1 || weight.columns < 1) refuse("weight " + weight.name + " is empty");
        }
        plan_.rope_half.resize(static_cast<std::size_t>(program.num_ropes), 0);
        plan_.activations.resize(program.weights.size(), {1, max_tokens});
        for (const std::int64_t width : program.buffer_widths) needs_row(width);
    }

    void check() {
        for (const Op& op : program_.ops) {
            std::visit([this](const auto& one) { check(one); }, op);
            ++now_;
        }
        if (plan_.output_width == 0) refuse("the last operation is neither Logits nor HiddenStates");
    }

    struct Use {
        std::optional<std::size_t> first;
        std::size_t last = 0;
    };
    const std::vector<Use>& uses() const { return uses_; }
    // What is known of the plan from the operations alone.
    const Plan& plan() const { return plan_; }

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

    // Columns that are written. Nothing but a Route may write what Experts takes from it.
    void written(const View& v) {
        view(v);
        routes_[static_cast<std::size_t>(v.buffer)] = nullptr;
    }

    void needs_row(std::int64_t floats) { plan_.row_floats = std::max(plan_.row_floats, floats); }

    void separate(const View& out, const View& x) {
        written(out);
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
        written(x);
        if (head_dim < 1 || x.width % head_dim != 0) refuse("a value is not a whole number of heads");
    }

    void layer(std::int64_t index) {
        if (index < 0 || index >= program_.num_layers) refuse("there is no layer " + std::to_string(index));
    }

    void check(const Embed& op) {
        written(op.out);
        weight(op.table, program_.vocab_size, op.out.width, false);
    }
    void check(const EmbedPosition& op) {
        written(op.out);
        const std::int64_t positions = shape_of(op.table).rows;
        weight(op.table, positions, op.out.width, false);
        plan_.most_positions = std::min(plan_.most_positions, positions);
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
    void check(const HeadLinear& op) {
        separate(op.out, op.x);
        const std::int64_t columns = shape_of(op.weight).columns;
        weight(op.weight, op.out.width, columns, false);
        if (op.num_heads < 1 || op.out.width % op.num_heads != 0 || op.x.width % op.num_heads != 0 ||
            columns > op.x.width / op.num_heads) {
            refuse("HeadLinear has values that are not so many heads");
        }
        stacked(op.weight, op.num_heads, op.num_heads * std::min(max_tokens_, kHeadTokens));
    }
    // A weight that has so many matrices one below the other, which meet so many rows.
    void stacked(int index, std::int64_t matrices, std::int64_t rows) {
        const Program::WeightShape shape = shape_of(index);
        if (shape.rows / matrices % kPanelRows != 0) {
            refuse("the matrices of weight " + shape.name + " have " + std::to_string(shape.rows / matrices) +
                   " rows, which must be a multiple of " + std::to_string(kPanelRows));
        }
        Plan::Activations& own = plan_.activations[static_cast<std::size_t>(index)];
        own = {std::max(own.groups, matrices), std::max(own.rows, rows)};
        plan_.most_groups = std::max(plan_.most_groups, matrices);
        plan_.most_rows = std::max(plan_.most_rows, rows);
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
        std::int64_t& half = plan_.rope_half[static_cast<std::size_t>(op.table)];
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
            op.out.width != width) {
            refuse("an attention operation does not fit the KV cache");
        }
        if (op.window < 0 || op.chunk < 0 || (op.window > 0) + (op.chunk > 0) + !op.causal > 1) {
            refuse("attention has a window, or a chunk, or is not causal");
        }
        if (!(op.softcap >= 0)) refuse("a softcap is negative");
        vector(op.sinks, op.num_heads);
        plan_.whole_sequences = plan_.whole_sequences || !op.causal;
        plan_.most_heads_per_kv_head = std::max(plan_.most_heads_per_kv_head, op.num_heads / program_.num_kv_heads);
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
    void check(const Route& op) {
        row_by_row(op.out, op.x, "Route");
        vector(op.bias, op.x.width);
        const std::int64_t experts = op.x.width, groups = op.num_groups;
        if (experts > kMostExperts || groups < 1 || experts % groups != 0 || op.top_groups < 1 ||
            op.top_groups > groups || op.top_k < 1 || op.top_k > experts / groups * op.top_groups ||
            (groups > 1 && op.top2_sum && experts / groups < 2)) {
            refuse("Route cannot choose so many experts or groups");
        }
        needs_row(kRouteNumbers * experts);
        routes_[static_cast<std::size_t>(op.out.buffer)] = &op;
    }
    void check(const Experts& op) {
        separate(op.out, op.x);
        view(op.shares);
        const Route* const route = routes_[static_cast<std::size_t>(op.shares.buffer)];
        if (route == nullptr || route->out.offset != op.shares.offset || route->out.width != op.shares.width) {
            refuse("Experts has shares that are not what a Route made");
        }
        gate(op.kind);
        const std::int64_t experts = op.shares.width, inner = shape_of(op.down).columns;
        weight(op.down, experts * op.out.width, inner, false);
        weight(op.gate_up, experts * 2 * inner, op.x.width, false);
        vector(op.gate_up_bias, experts * 2 * inner);
        vector(op.down_bias, experts * op.out.width);
        const std::int64_t rows = std::min(max_tokens_, kExpertTokens) * route->top_k;
        stacked(op.gate_up, experts, rows);
        stacked(op.down, experts, rows);
        needs_row(inner);
        plan_.expert_rows = std::max(plan_.expert_rows, rows);
        plan_.expert_inner = std::max(plan_.expert_inner, row_stride(2 * inner));
        plan_.expert_outputs = std::max(plan_.expert_outputs, row_stride(std::max(op.x.width, op.out.width)));
    }
    void gate(ActivationKind kind) {
        if (kind < ActivationKind::kSilu || kind > ActivationKind::kClampedSwiglu || kind == ActivationKind::kRelu) {
            refuse("unknown activation of a gate");
        }
    }
    void check(const Add& op) {
        written(op.x);
        view(op.y);
        if (op.x.width != op.y.width) refuse("Add of different widths");
    }
    void check(const AddBias& op) {
        written(op.x);
        weight(op.bias, 1, op.x.width, true);
    }
    void check(const Scale& op) { written(op.x); }
    void check(const SigmoidGate& op) {
        written(op.x);
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
        plan_.output_width = width;
    }

    const Program& program_;
    const std::int64_t max_tokens_;
    std::vector<Use> uses_;
    std::vector<const Route*> routes_;  // per buffer: what wrote it, if nothing else did
    Plan plan_;
    std::size_t now_ = 0;
};

}  // namespace

Plan make_plan(const Program& program, std::int64_t max_tokens) {
    Checker checker(program, max_tokens);
    checker.check();

    Plan plan = checker.plan();
    plan.buffers.resize(program.buffer_widths.size());
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
    plan.feeds_product.resize(program.ops.size());
    for (std::size_t i = 0; i + 1 < program.ops.size(); ++i) {
        const Linear* const next = std::get_if<Linear>(&program.ops[i + 1]);
        if (next == nullptr) continue;
        const Checker::Use& use = uses[static_cast<std::size_t>(next->x.buffer)];
        const bool whole = next->x.width == program.buffer_widths[static_cast<std::size_t>(next->x.buffer)];
        plan.feeds_product[i] = whole && use.first == i && use.last == i + 1;
    }
    plan.next_weight.resize(program.ops.size(), kNoWeight);
    int next_weight = kNoWeight;
    for (int round = 0; round < 2; ++round) {
        for (std::size_t i = program.ops.size(); i-- > 0;) {
            plan.next_weight[i] = next_weight;
            if (const Linear* const linear = std::get_if<Linear>(&program.ops[i])) next_weight = linear->weight;
            if (const Logits* const logits = std::get_if<Logits>(&program.ops[i])) next_weight = logits->weight;
        }
    }
    if (const Logits* const logits = std::get_if<Logits>(&program.ops.back())) {
        plan.logit_input = {plan.arena_floats, row_stride(logits->x.width)};
        plan.arena_floats += static_cast<std::size_t>(plan.logit_input.stride * max_tokens);
    }
    return plan;
}

}  // namespace windlass
