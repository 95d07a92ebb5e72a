// Operations with many matrices stacked in one weight.
#include <algorithm>

#include "executor/step.h"

namespace windlass {

void Step::apply(const Route& op) {
    share(tokens_, op.x.width * kExponentialCost, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            RouteJob job = {};
            job.x = at(op.x, t);
            job.experts = static_cast<int>(op.x.width);
            job.top_k = static_cast<int>(op.top_k);
            job.sigmoid = op.sigmoid;
            job.normalize = op.normalize;
            job.scale = op.scale;
            job.bias = vector(op.bias);
            job.groups = static_cast<int>(op.num_groups);
            job.top_groups = static_cast<int>(op.top_groups);
            job.top2_sum = op.top2_sum;
            job.out = at(op.out, t);
            job.scratch = scratch(thread);
            kernels_.route(job);
        }
    });
}

// Quantizes what row(thread, r) points to for each row of the groups.
template <typename Row>
void Step::fill_tiles(const PackedMatrix& weights, bool shared, std::int64_t cost, const Row& row) {
    RowGroups& groups = resources_.row_groups;
    const std::int64_t tokens = kernels_.tile_tokens(weights);
    const std::size_t tile_bytes = kernels_.tile_bytes(weights, static_cast<int>(tokens));
    groups.number_tiles(tokens, shared);
    const std::int64_t row_cost = cost + weights.columns * kQuantizeCost;
    const std::int64_t tile_rows = std::min(tokens, groups.rows() / groups.tiles() + 1);
    share(groups.tiles(), tile_rows * row_cost, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t tile = begin; tile < end; ++tile) {
            const RowGroup& group = groups.group_of_tile(tile);
            const std::int64_t first = group.first_row + (tile - group.first_tile) * tokens;
            QuantizeJob job = {};
            job.matrix = &weights;
            job.tile = resources_.tiles.data() + static_cast<std::size_t>(tile) * tile_bytes;
            job.tokens = static_cast<int>(std::min(tokens, group.end_row() - first));
            for (; job.token < job.tokens; ++job.token) {
                job.x = row(thread, first + job.token);
                kernels_.quantize(job);
            }
        }
    });
}

// Multiplies the rows of each group with its matrix, `matrix_rows` rows of `weights`. lies(group) says where they lie.
template <typename Lies>
void Step::products(const PackedMatrix& weights, const float* bias, std::int64_t matrix_rows, const Lies& lies) {
    const RowGroups& groups = resources_.row_groups;
    const bool codes = weights.scale_type != ScaleType::kNone;
    const std::int64_t tile = codes ? kernels_.tile_tokens(weights) : 1;
    const std::size_t tile_bytes = codes ? kernels_.tile_bytes(weights, static_cast<int>(tile)) : 0;
    const std::int64_t panels = matrix_rows / kPanelRows, number = static_cast<std::int64_t>(groups.groups().size());
    const auto multiply = [&](int thread, const RowGroup& group, std::int64_t panel, std::int64_t end) {
        PackedMatrix matrix = weights;
        matrix.data += group.matrix * panels * weights.panel_bytes;
        matrix.rows = matrix_rows;
        const RowsLie where = lies(group);
        LinearJob job = {};
        job.matrix = &matrix;
        job.panel_begin = panel;
        job.panel_end = end;
        job.x_stride = where.x_stride;
        job.tile_stride = static_cast<std::int64_t>(tile_bytes);
        job.y_stride = where.y_stride;
        job.bias = bias == nullptr ? nullptr : bias + group.matrix * matrix_rows;
        job.scratch = scratch(thread);
        const std::int64_t block = block_rows(group.rows, tile);
        for (std::int64_t row = 0; row < group.rows && !cancelled(); row += block) {
            job.x = where.x + row * where.x_stride;
            job.tiles = resources_.tiles.data() + static_cast<std::size_t>(group.first_tile + row / tile) * tile_bytes;
            job.tokens = static_cast<int>(std::min(block, group.rows - row));
            job.y = where.y + row * where.y_stride;
            kernels_.linear(job);
            executor_.progress_.fetch_add(1, std::memory_order_relaxed);
        }
    };
    // The panels of all matrices one after the other: a stretch may end in another one than it begins in.
    share_panels(panels * number, groups.rows() / number, weights.columns,
                 [&](int thread, std::int64_t begin, std::int64_t end) {
                     while (begin < end) {
                         const std::int64_t i = begin / panels, panel = begin % panels;
                         const std::int64_t count = std::min(panels - panel, end - begin);
                         multiply(thread, groups.groups()[static_cast<std::size_t>(i)], panel, panel + count);
                         begin += count;
                     }
                 });
}

void Step::apply(const HeadLinear& op) {
    const PackedMatrix& weights = matrix(op.weight);
    const std::int64_t in = op.x.width / op.num_heads, out = op.out.width / op.num_heads;
    for (std::int64_t first = 0; first < tokens_ && !cancelled(); first += kHeadTokens) {
        const std::int64_t tokens = std::min(kHeadTokens, tokens_ - first);
        resources_.row_groups.all(op.num_heads, tokens);
        if (weights.scale_type != ScaleType::kNone) {
            fill_tiles(weights, false, 0,
                       [&](int, std::int64_t row) { return at(op.x, first + row % tokens) + row / tokens * in; });
        }
        products(weights, nullptr, out, [&](const RowGroup& group) {
            return RowsLie{at(op.x, first) + group.matrix * in, stride(op.x), at(op.out, first) + group.matrix * out,
                           stride(op.out)};
        });
    }
}

void Step::apply(const Experts& op) {
    for (std::int64_t first = 0; first < tokens_ && !cancelled(); first += kExpertTokens) {
        const std::int64_t tokens = std::min(kExpertTokens, tokens_ - first);
        resources_.row_groups.chosen(at(op.shares, first), stride(op.shares), tokens, op.shares.width);
        if (resources_.row_groups.rows() > 0) run_experts(op, first, tokens);
        sum_experts(op, first, tokens);
    }
}

// Leaves what the experts make of each of their rows in `expert_outputs`.
void Step::run_experts(const Experts& op, std::int64_t first, std::int64_t tokens) {
    const Plan& plan = executor_.plan_;
    const RowGroups& groups = resources_.row_groups;
    const PackedMatrix &gate_up = matrix(op.gate_up), &down = matrix(op.down);
    float* const inner = resources_.expert_inner.floats();
    float* const outputs = resources_.expert_outputs.floats();
    const std::int64_t inner_stride = plan.expert_inner, stride = plan.expert_outputs;
    const std::int64_t width = op.x.width, half = down.columns;
    const auto copy_input = [&](std::int64_t row, float* to) {
        const float* const x = at(op.x, first + groups.token(row));
        std::copy_n(x, width, to);
        if (op.scale_input) kernels_.scale(to, groups.share(row), width);
    };
    if (gate_up.scale_type == ScaleType::kNone) {
        share(groups.rows(), width, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t row = begin; row < end; ++row) copy_input(row, outputs + row * stride);
        });
    } else {
        // One token alone has the same codes for all experts.
        fill_tiles(gate_up, tokens == 1 && !op.scale_input, 0, [&](int thread, std::int64_t row) -> const float* {
            if (!op.scale_input) return at(op.x, first + groups.token(row));
            copy_input(row, scratch(thread));
            return scratch(thread);
        });
    }
    products(gate_up, vector(op.gate_up_bias), 2 * half, [&](const RowGroup& group) {
        return RowsLie{outputs + group.first_row * stride, stride, inner + group.first_row * inner_stride,
                       inner_stride};
    });
    const std::int64_t cost = half * kExponentialCost;
    if (down.scale_type == ScaleType::kNone) {
        share(groups.rows(), cost, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t row = begin; row < end; ++row) {
                float* const x = inner + row * inner_stride;
                kernels_.gated_activation(op.kind, x, half, x);
            }
        });
    } else {
        fill_tiles(down, false, cost, [&](int thread, std::int64_t row) {
            kernels_.gated_activation(op.kind, inner + row * inner_stride, half, scratch(thread));
            return scratch(thread);
        });
    }
    products(down, vector(op.down_bias), op.out.width, [&](const RowGroup& group) {
        return RowsLie{inner + group.first_row * inner_stride, inner_stride, outputs + group.first_row * stride,
                       stride};
    });
}

void Step::sum_experts(const Experts& op, std::int64_t first, std::int64_t tokens) {
    const RowGroups& groups = resources_.row_groups;
    const float* const outputs = resources_.expert_outputs.floats();
    const std::int64_t cost = op.out.width * (groups.rows() / tokens + 1);
    share(tokens, cost, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            float* const out = at(op.out, first + t);
            std::fill_n(out, op.out.width, 0.0F);
            groups.for_rows_of(t, [&](std::int64_t row) {
                const float factor = op.scale_input ? 1.0F : groups.share(row);
                kernels_.add_scaled(out, outputs + row * executor_.plan_.expert_outputs, factor, op.out.width);
            });
        }
    });
}

}  // namespace windlass
