#include "executor/step.h"

#include <algorithm>
#include <cstring>
#include <variant>

#include "runtime/default_floats.h"
#include "runtime/faults.h"

namespace windlass {
Step::Step(Executor& executor, const BatchView& batch, float* result)
    : executor_(executor),
      resources_(*executor.resources_),
      kernels_(executor.kernels_),
      batch_(batch),
      result_(result),
      tokens_(batch.tokens()) {}

bool Step::run() {
    const DefaultFloats default_floats;
    make_query_tiles();
    group_adapters();
    for (op_ = 0; op_ < executor_.program_.ops.size(); ++op_) {
        fault_point(Fault::kOperation);
        std::visit([this](const auto& one) { apply(one); }, executor_.program_.ops[op_]);
        if (cancelled()) return false;
    }
    return true;
}

float* Step::at(const View& view, std::int64_t row) const {
    const Plan::Buffer& buffer = executor_.plan_.buffers[static_cast<std::size_t>(view.buffer)];
    return resources_.arena.floats() + buffer.offset + row * buffer.stride + view.offset;
}

std::int64_t Step::stride(const View& view) const {
    return executor_.plan_.buffers[static_cast<std::size_t>(view.buffer)].stride;
}

float* Step::scratch(int thread) const {
    return resources_.scratch.floats() + executor_.scratch_floats_ * static_cast<std::size_t>(thread);
}

void Step::apply(const Linear& op) {
    linear(matrix(op.weight), vector(op.bias), at(op.x, 0), stride(op.x), tokens_, at(op.out, 0), stride(op.out));
    adapt(op);
}

void Step::apply(const Logits& op) {
    const std::int64_t rows = static_cast<std::int64_t>(batch_.logit_rows.size());
    if (rows == 0) return;
    const Plan::Buffer& gathered = executor_.plan_.logit_input;
    float* const x = resources_.arena.floats() + gathered.offset;
    gather(op.x, x, gathered.stride);
    const std::int64_t width = executor_.program_.vocab_size;
    linear(matrix(op.weight), nullptr, x, gathered.stride, rows, result_, width);
    if (op.softcap == 0.0F) return;
    share(rows * width, kExponentialCost, [&](int, std::int64_t begin, std::int64_t end) {
        kernels_.softcap(result_ + begin, op.softcap, end - begin);
    });
}

void Step::apply(const HiddenStates& op) { gather(op.x, result_, op.x.width); }

void Step::gather(const View& x, float* to, std::int64_t to_stride) const {
    for (std::size_t r = 0; r < batch_.logit_rows.size(); ++r) {
        std::memcpy(to + static_cast<std::int64_t>(r) * to_stride, at(x, batch_.logit_rows[r]),
                    static_cast<std::size_t>(x.width) * sizeof(float));
    }
}

void Step::quantize(const PackedMatrix& weights, const float* x, std::int64_t x_stride, std::int64_t rows) {
    for_tiles(weights, rows, weights.columns * kQuantizeCost, [&](int, QuantizeJob job, std::int64_t t) {
        job.x = x + t * x_stride;
        kernels_.quantize(job);
    });
}

void Step::fetch_next_product(std::int64_t rows) {
    ThreadPool::Ahead ahead;
    if (rows <= kFewTokens) {
        const PackedMatrix& next = matrix(executor_.plan_.next_weight[op_]);
        ahead.begin = next.data;
        ahead.stride = long_stretch(num_panels(next), rows, next.columns) * next.panel_bytes;
        ahead.bytes = std::min(ahead.stride, kFetchedAhead);
    }
    resources_.pool->expect(ahead);
}

void Step::linear(const PackedMatrix& weights, const float* bias, const float* x, std::int64_t x_stride,
                  std::int64_t rows, float* y, std::int64_t y_stride) {
    const bool codes = weights.scale_type != ScaleType::kNone;
    const std::int64_t tile = codes ? kernels_.tile_tokens(weights) : 1;
    const std::size_t tile_bytes = codes ? kernels_.tile_bytes(weights, static_cast<int>(tile)) : 0;
    if (codes && quantized_for_ != &weights) quantize(weights, x, x_stride, rows);
    quantized_for_ = nullptr;
    const std::int64_t panels = num_panels(weights);
    LinearJob job = {};
    job.matrix = &weights;
    job.x_stride = x_stride;
    job.tile_stride = static_cast<std::int64_t>(tile_bytes);
    job.y_stride = y_stride;
    job.bias = bias;
    const auto multiply = [&](int thread, std::int64_t row, std::int64_t count, std::int64_t panel, std::int64_t end) {
        LinearJob part = job;
        part.panel_begin = panel;
        part.panel_end = std::min(end, panels);
        part.x = x + row * x_stride;
        part.tiles = resources_.tiles.data() + static_cast<std::size_t>(row / tile) * tile_bytes;
        part.tokens = static_cast<int>(std::min(count, rows - row));
        part.y = y + row * y_stride;
        part.scratch = scratch(thread);
        kernels_.linear(part);
    };
    fetch_next_product(rows);
    if (rows <= kFewTokens) {
        share_panels(panels, rows, weights.columns,
                     [&](int thread, std::int64_t begin, std::int64_t end) { multiply(thread, 0, rows, begin, end); });
        return;
    }
    // Blocks of one piece of the matrix come one after the other, while it is in the cache.
    const std::int64_t block = block_rows(rows, tile);
    const std::int64_t blocks = (rows + block - 1) / block;
    const std::int64_t pieces = (panels + kPiecePanels - 1) / kPiecePanels;
    share(pieces * blocks, block * kPanelRows * weights.columns * kPiecePanels,
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t i = begin; i < end; ++i) {
                  const std::int64_t panel = i / blocks * kPiecePanels;
                  multiply(thread, i % blocks * block, block, panel, panel + kPiecePanels);
              }
          });
}

}  // namespace windlass
