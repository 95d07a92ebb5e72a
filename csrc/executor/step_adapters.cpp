// What adapters add to a step.
#include <algorithm>
#include <cstring>

#include "executor/step.h"

namespace windlass {

void Step::group_adapters() {
    resources_.adapter_groups.clear();
    resources_.adapter_tokens.clear();
    for (std::size_t i = 0; i < batch_.adapters.size(); ++i) {
        const std::int64_t begin = static_cast<std::int64_t>(resources_.adapter_tokens.size());
        for (std::int64_t s = 0; s < batch_.sequences(); ++s) {
            if (batch_.sequence_adapters[static_cast<std::size_t>(s)] != static_cast<std::int32_t>(i)) continue;
            for (std::int32_t t = batch_.token_starts[s]; t < batch_.token_starts[s + 1]; ++t) {
                resources_.adapter_tokens.push_back(t);
            }
        }
        const std::int64_t count = static_cast<std::int64_t>(resources_.adapter_tokens.size()) - begin;
        if (count > 0) resources_.adapter_groups.push_back({batch_.adapters[i].get(), begin, count});
    }
}

bool Step::is_adapted(int weight) const {
    return std::any_of(resources_.adapter_groups.begin(), resources_.adapter_groups.end(),
                       [&](const Executor::AdapterGroup& group) { return group.adapter->update(weight) != nullptr; });
}

void Step::adapt(const Linear& op) {
    for (const Executor::AdapterGroup& group : resources_.adapter_groups) {
        const AdapterUpdate* const update = group.adapter->update(op.weight);
        if (update != nullptr && !cancelled()) add_update(op, *update, group);
    }
}

void Step::add_update(const Linear& op, const AdapterUpdate& update, const Executor::AdapterGroup& group) {
    const std::int32_t* const tokens = resources_.adapter_tokens.data() + group.begin;
    const std::int64_t rows = group.count, row_floats = executor_.adapter_row_floats_;
    float* const hidden = resources_.adapter_hidden.floats();
    LinearJob job = {};
    // Tokens that do not follow one another are brought together, so that all of them meet a weight while it is there.
    if (tokens[rows - 1] - tokens[0] + 1 == rows) {
        job.x = at(op.x, tokens[0]);
        job.x_stride = stride(op.x);
    } else {
        float* const x = resources_.adapter_x.floats();
        for (std::int64_t i = 0; i < rows; ++i) {
            std::memcpy(x + i * row_floats, at(op.x, tokens[i]), static_cast<std::size_t>(op.x.width) * sizeof(float));
        }
        job.x = x;
        job.x_stride = row_floats;
    }
    const float* const x = job.x;
    const std::int64_t blocks = (rows + kLinearTokens - 1) / kLinearTokens;
    const auto in_block = [&](std::int64_t block) {
        return static_cast<int>(std::min<std::int64_t>(kLinearTokens, rows - block * kLinearTokens));
    };
    const PackedMatrix& a = update.a.matrix();
    job.matrix = &a;
    job.y_stride = row_floats;
    const std::int64_t a_panels = (a.rows + kPanelRows - 1) / kPanelRows;
    const std::int64_t block_rows = std::min<std::int64_t>(rows, kLinearTokens);
    share(a_panels * blocks, block_rows * kPanelRows * a.columns,
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t i = begin; i < end; ++i) {
                  LinearJob part = job;
                  part.panel_begin = i / blocks;
                  part.panel_end = part.panel_begin + 1;
                  part.tokens = in_block(i % blocks);
                  part.x = x + i % blocks * kLinearTokens * job.x_stride;
                  part.y = hidden + i % blocks * kLinearTokens * row_floats;
                  part.scratch = scratch(thread);
                  kernels_.linear(part);
              }
          });
    for (const AdapterUpdate::Piece& piece : update.pieces) {
        for (std::int64_t i = 0; i < rows; ++i) {
            float* const row = hidden + i * row_floats + piece.first_rank;
            for (std::int64_t r = 0; r < piece.b.layout().columns; ++r) row[r] *= piece.scale;
        }
    }
    for (const AdapterUpdate::Piece& piece : update.pieces) {
        const PackedMatrix& b = piece.b.matrix();
        const std::int64_t pieces = ((b.rows + kPanelRows - 1) / kPanelRows + kAdapterPanels - 1) / kAdapterPanels;
        share(pieces * blocks, block_rows * kAdapterPanels * kPanelRows * b.columns,
              [&](int thread, std::int64_t begin, std::int64_t end) {
                  for (std::int64_t i = begin; i < end; ++i) {
                      add_panels(op, piece, hidden, i % blocks * kLinearTokens, in_block(i % blocks), tokens,
                                 i / blocks * kAdapterPanels, thread);
                  }
              });
    }
}

void Step::add_panels(const Linear& op, const AdapterUpdate::Piece& piece, const float* hidden, std::int64_t row,
                      int count, const std::int32_t* tokens, std::int64_t panel, int thread) {
    const std::int64_t row_floats = executor_.adapter_row_floats_, first = panel * kPanelRows;
    PackedMatrix b = piece.b.matrix();
    b.data += panel * b.panel_bytes;
    b.rows = std::min(b.rows - first, kAdapterPanels * kPanelRows);
    float* const sums = resources_.adapter_sums.floats() + thread * kAdapterSums;
    LinearJob job = {};
    job.matrix = &b;
    job.panel_end = (b.rows + kPanelRows - 1) / kPanelRows;
    job.x = hidden + row * row_floats + piece.first_rank;
    job.x_stride = row_floats;
    job.tokens = count;
    job.y = sums;
    job.y_stride = kAdapterPanels * kPanelRows;
    job.scratch = scratch(thread);
    kernels_.linear(job);
    for (int i = 0; i < count; ++i) {
        kernels_.add(at(op.out, tokens[row + i]) + piece.first_row + first, sums + i * job.y_stride, b.rows);
    }
}

}  // namespace windlass
