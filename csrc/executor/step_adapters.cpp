// What adapters add to a step.
#include <algorithm>
#include <cstring>

#include "executor/step.h"

namespace windlass {
namespace {

// Up to so many rows a product waits for the weights, and costs as much.
std::int64_t costly_rows(std::int64_t rows) { return std::clamp<std::int64_t>(rows, 4, kLinearTokens); }

}  // namespace

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
    const std::int64_t rows = group.count;
    // Tokens that do not follow one another are brought together, so that all of them meet a weight while it is there.
    const float* x = at(op.x, tokens[0]);
    std::int64_t x_stride = stride(op.x);
    if (tokens[rows - 1] - tokens[0] + 1 != rows) {
        float* const gathered = resources_.adapter_x.floats();
        x_stride = executor_.adapter_row_floats_;
        for (std::int64_t i = 0; i < rows; ++i) {
            std::memcpy(gathered + i * x_stride, at(op.x, tokens[i]),
                        static_cast<std::size_t>(op.x.width) * sizeof(float));
        }
        x = gathered;
    }
    multiply_a(update, x, x_stride, rows);
    const std::int64_t blocks = (rows + kLinearTokens - 1) / kLinearTokens;
    for (const AdapterUpdate::Piece& piece : update.pieces) {
        const PackedMatrix& b = piece.b.matrix();
        const std::int64_t panels = num_panels(b);
        const std::int64_t parts = (panels + kAdapterPanels - 1) / kAdapterPanels;
        share(parts * blocks, costly_rows(rows) * kAdapterPanels * kPanelRows * b.columns,
              [&](int thread, std::int64_t begin, std::int64_t end) {
                  for (std::int64_t i = begin; i < end; ++i) {
                      const std::int64_t row = i % blocks * kLinearTokens;
                      const int count = static_cast<int>(std::min<std::int64_t>(kLinearTokens, rows - row));
                      add_panels(op, update, piece, row, count, tokens, i / blocks * kAdapterPanels, thread);
                  }
              });
    }
}

void Step::multiply_a(const AdapterUpdate& update, const float* x, std::int64_t x_stride, std::int64_t rows) {
    const PackedMatrix& a = update.a.matrix();
    const std::int64_t stride = update.hidden_stride(), segments = AdapterUpdate::segments(a.columns);
    float* const hidden = resources_.adapter_hidden.floats();
    const std::int64_t column_bytes = a.panel_bytes / a.columns;
    const std::int64_t panels = num_panels(a);
    const std::int64_t blocks = (rows + kLinearTokens - 1) / kLinearTokens;
    share(segments * panels * blocks, costly_rows(rows) * kPanelRows * std::min(a.columns, kAdapterColumns),
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t i = begin; i < end; ++i) {
                  const std::int64_t row = i % blocks * kLinearTokens, segment = i / blocks / panels;
                  const std::int64_t column = segment * kAdapterColumns;
                  PackedMatrix part = a;
                  part.data += column * column_bytes;
                  part.columns = std::min(kAdapterColumns, a.columns - column);
                  LinearJob job = {};
                  job.matrix = &part;
                  job.panel_begin = i / blocks % panels;
                  job.panel_end = job.panel_begin + 1;
                  job.x = x + row * x_stride + column;
                  job.x_stride = x_stride;
                  job.tokens = static_cast<int>(std::min<std::int64_t>(kLinearTokens, rows - row));
                  job.y = hidden + (segment * rows + row) * stride;
                  job.y_stride = stride;
                  job.scratch = scratch(thread);
                  kernels_.linear(job);
              }
          });
    share(rows, a.rows * segments, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            float* const row = hidden + i * stride;
            for (std::int64_t segment = 1; segment < segments; ++segment) {
                kernels_.add(row, row + segment * rows * stride, a.rows);
            }
            for (const AdapterUpdate::Piece& piece : update.pieces) {
                float* const ranks = row + piece.first_rank;
                for (std::int64_t r = 0; r < piece.b.layout().columns; ++r) ranks[r] *= piece.scale;
            }
        }
    });
}

void Step::add_panels(const Linear& op, const AdapterUpdate& update, const AdapterUpdate::Piece& piece,
                      std::int64_t row, int count, const std::int32_t* tokens, std::int64_t panel, int thread) {
    const std::int64_t first = panel * kPanelRows;
    PackedMatrix b = piece.b.matrix();
    b.data += panel * b.panel_bytes;
    b.rows = std::min(b.rows - first, kAdapterPanels * kPanelRows);
    float* const sums = resources_.adapter_sums.floats() + thread * kAdapterSums;
    LinearJob job = {};
    job.matrix = &b;
    job.panel_end = num_panels(b);
    job.x_stride = update.hidden_stride();
    job.x = resources_.adapter_hidden.floats() + row * job.x_stride + piece.first_rank;
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
