// The operations on one row of values after the other.
#include <algorithm>
#include <variant>

#include "executor/step.h"

namespace windlass {

void Step::apply(const Embed& op) {
    const PackedMatrix& table = matrix(op.table);
    // Every element is unpacked with its panel.
    share(tokens_, op.out.width * kPanelRows, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) kernels_.embed(table, batch_.token_ids[t], at(op.out, t));
    });
}

template <typename Row>
void Step::for_rows(const View& out, std::int64_t cost, const Row& row) {
    const PackedMatrix* weights = nullptr;
    bool adapted = false;
    if (executor_.plan_.feeds_product[op_]) {
        const int index = std::get<Linear>(executor_.program_.ops[op_ + 1]).weight;
        weights = &matrix(index);
        adapted = is_adapted(index);
        if (weights->scale_type == ScaleType::kNone) weights = nullptr;
    }
    if (weights == nullptr) {
        share(tokens_, cost, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t t = begin; t < end; ++t) row(t, at(out, t));
        });
        return;
    }
    for_tiles(*weights, tokens_, cost + out.width * kQuantizeCost, [&](int thread, QuantizeJob job, std::int64_t t) {
        float* const x = adapted ? at(out, t) : scratch(thread);
        row(t, x);
        job.x = x;
        kernels_.quantize(job);
    });
    quantized_for_ = weights;
}

void Step::apply(const EmbedPosition& op) {
    const PackedMatrix& table = matrix(op.table);
    share(tokens_, op.out.width * kPanelRows, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) kernels_.embed(table, batch_.positions[t], at(op.out, t));
    });
}

void Step::apply(const RmsNorm& op) {
    for_rows(op.out, op.x.width, [&](std::int64_t t, float* to) {
        kernels_.rms_norm(at(op.x, t), vector(op.weight), op.eps, op.x.width, to);
    });
}

void Step::apply(const LayerNorm& op) {
    for_rows(op.out, op.x.width * 2, [&](std::int64_t t, float* to) {
        kernels_.layer_norm(at(op.x, t), vector(op.weight), vector(op.bias), op.eps, op.x.width, to);
    });
}

void Step::apply(const HeadNorm& op) {
    const float* const weights = vector(op.weight);
    const bool per_head = weights != nullptr && weight(op.weight).layout().columns != op.head_dim;
    share(tokens_, op.x.width * 2, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            float* const row = at(op.x, t);
            for (std::int64_t column = 0; column < op.x.width; column += op.head_dim) {
                float* const head = row + column;
                const float* const own = per_head ? weights + column : weights;
                if (op.centered) {
                    kernels_.layer_norm(head, own, nullptr, op.eps, op.head_dim, head);
                } else {
                    kernels_.rms_norm(head, own, op.eps, op.head_dim, head);
                }
            }
        }
    });
}

void Step::apply(const JoinHeads& op) {
    const std::int64_t left = op.left.width / op.num_heads, right = op.right.width / op.num_heads;
    share(tokens_, op.out.width, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            float* to = at(op.out, t);
            for (std::int64_t head = 0; head < op.num_heads; ++head) {
                to = std::copy_n(at(op.left, t) + head * left, left, to);
                to = std::copy_n(at(op.right, t) + head * right, right, to);
            }
        }
    });
}

void Step::apply(const Rope& op) {
    const Executor::RopeTable& table = resources_.ropes[static_cast<std::size_t>(op.table)];
    const std::int64_t half = op.rotary_dim / 2;
    share(tokens_, op.x.width, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t angles = batch_.positions[t] * half;
            kernels_.rope(at(op.x, t), table.cos.floats() + angles, table.sin.floats() + angles,
                          op.x.width / op.head_dim, op.head_dim, half);
        }
    });
}

void Step::apply(const Activation& op) {
    for_rows(op.out, op.out.width * kExponentialCost,
             [&](std::int64_t t, float* to) { kernels_.activation(op.kind, at(op.x, t), op.out.width, to); });
}

void Step::apply(const GatedActivation& op) {
    for_rows(op.out, op.out.width * kExponentialCost,
             [&](std::int64_t t, float* to) { kernels_.gated_activation(op.kind, at(op.x, t), op.out.width, to); });
}

template <typename Row>
void Step::change_rows(const View& x, const Row& row) {
    share(tokens_, x.width, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) row(t, at(x, t));
    });
}

void Step::apply(const Add& op) {
    change_rows(op.x, [&](std::int64_t t, float* x) { kernels_.add(x, at(op.y, t), op.x.width); });
}

void Step::apply(const AddBias& op) {
    change_rows(op.x, [&](std::int64_t, float* x) { kernels_.add(x, vector(op.bias), op.x.width); });
}

void Step::apply(const Scale& op) {
    change_rows(op.x, [&](std::int64_t, float* x) { kernels_.scale(x, op.factor, op.x.width); });
}

void Step::apply(const SigmoidGate& op) {
    change_rows(op.x, [&](std::int64_t t, float* x) { kernels_.sigmoid_gate(x, *at(op.gate, t), op.x.width); });
}

}  // namespace windlass
