#include "executor/step.h"

#include <algorithm>
#include <cstring>
#include <variant>

#include "runtime/default_floats.h"
#include "runtime/faults.h"

namespace windlass {
namespace {

// Panels per piece of a product: what the kernels unpack together.
constexpr std::int64_t kPiecePanels = 2;
// Up to so many tokens a product waits for the weights.
constexpr std::int64_t kFewTokens = 16;
// Query tokens that attend together when there are few, and how many tiles a thread should have before there are more.
constexpr std::int32_t kFewQueryTokens = 8;
constexpr std::int64_t kTilesPerThread = 16;
// Quantizing a value costs about this many multiplications.
constexpr std::int64_t kQuantizeCost = 4;
// An exponential costs about this many multiplications.
constexpr std::int64_t kExponentialCost = 16;

}  // namespace

Step::Step(Executor& executor, const BatchView& batch, float* logits)
    : executor_(executor),
      resources_(*executor.resources_),
      kernels_(executor.kernels_),
      batch_(batch),
      logits_(logits),
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

const float* Step::vector(int weight) const {
    return weight == kNoWeight ? nullptr : resources_.weights[static_cast<std::size_t>(weight)].vector();
}

const PackedMatrix& Step::matrix(int weight) const {
    return resources_.weights[static_cast<std::size_t>(weight)].matrix();
}

void Step::make_query_tiles() {
    resources_.query_tiles.clear();
    // Large tiles, which read keys and values less often, where there are enough of them for all threads.
    const std::int64_t pieces = tokens_ * resources_.cache.shape().heads / kQueryTokens;
    const std::int32_t most = pieces >= kTilesPerThread * resources_.pool->size() ? kQueryTokens : kFewQueryTokens;
    for (std::int64_t s = 0; s < batch_.sequences(); ++s) {
        const std::int32_t end = batch_.token_starts[s + 1];
        for (std::int32_t t = batch_.token_starts[s]; t < end; t += most) {
            resources_.query_tiles.push_back({static_cast<std::int32_t>(s), t, std::min(most, end - t)});
        }
    }
    for (const std::int32_t position : batch_.positions) {
        attention_pages_ += position / kPageSize + 1;
        longest_ = std::max<std::int64_t>(longest_, position + 1);
    }
}

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
        const int weight = std::get<Linear>(executor_.program_.ops[op_ + 1]).weight;
        weights = &matrix(weight);
        adapted = is_adapted(weight);
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

void Step::apply(const RmsNorm& op) {
    for_rows(op.out, op.x.width, [&](std::int64_t t, float* to) {
        kernels_.rms_norm(at(op.x, t), vector(op.weight), op.eps, op.x.width, to);
    });
}

void Step::apply(const HeadNorm& op) {
    share(tokens_, op.x.width, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            float* const row = at(op.x, t);
            for (std::int64_t column = 0; column < op.x.width; column += op.head_dim) {
                kernels_.rms_norm(row + column, vector(op.weight), op.eps, op.head_dim, row + column);
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

void Step::apply(const GatedActivation& op) {
    for_rows(op.out, op.out.width * kExponentialCost,
             [&](std::int64_t t, float* to) { kernels_.silu_gate(at(op.x, t), op.out.width, to); });
}

void Step::apply(const Add& op) {
    share(tokens_, op.x.width, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) kernels_.add(at(op.x, t), at(op.y, t), op.x.width);
    });
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
    for (std::int64_t r = 0; r < rows; ++r) {
        std::memcpy(x + r * gathered.stride, at(op.x, batch_.logit_rows[r]),
                    static_cast<std::size_t>(op.x.width) * sizeof(float));
    }
    linear(matrix(op.weight), nullptr, x, gathered.stride, rows, logits_, executor_.program_.vocab_size);
}

template <typename Body>
void Step::for_tiles(const PackedMatrix& weights, std::int64_t rows, std::int64_t cost, const Body& body) {
    const std::int64_t tokens = kernels_.tile_tokens(weights);
    const std::size_t tile_bytes = kernels_.tile_bytes(weights, static_cast<int>(tokens));
    share((rows - 1) / tokens + 1, std::min(rows, tokens) * cost,
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t tile = begin; tile < end; ++tile) {
                  QuantizeJob job = {};
                  job.matrix = &weights;
                  job.tile = resources_.tiles.data() + static_cast<std::size_t>(tile) * tile_bytes;
                  job.tokens = static_cast<int>(std::min(tokens, rows - tile * tokens));
                  for (; job.token < job.tokens; ++job.token) body(thread, job, tile * tokens + job.token);
              }
          });
}

void Step::quantize(const PackedMatrix& weights, const float* x, std::int64_t x_stride, std::int64_t rows) {
    for_tiles(weights, rows, weights.columns * kQuantizeCost, [&](int, QuantizeJob job, std::int64_t t) {
        job.x = x + t * x_stride;
        kernels_.quantize(job);
    });
}

void Step::linear(const PackedMatrix& weights, const float* bias, const float* x, std::int64_t x_stride,
                  std::int64_t rows, float* y, std::int64_t y_stride) {
    const bool codes = weights.scale_type != ScaleType::kNone;
    const std::int64_t tile = codes ? kernels_.tile_tokens(weights) : 1;
    const std::size_t tile_bytes = codes ? kernels_.tile_bytes(weights, static_cast<int>(tile)) : 0;
    if (codes && quantized_for_ != &weights) quantize(weights, x, x_stride, rows);
    quantized_for_ = nullptr;
    const std::int64_t panels = (weights.rows + kPanelRows - 1) / kPanelRows;
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
    const std::int64_t panel_cost = kPanelRows * weights.columns;
    if (rows <= kFewTokens) {
        // Long stretches of the weights first, which memory serves best, then short ones, to end together. Not when
        // short ones are so short that several are handed out at a time.
        const std::int64_t piece_cost = rows * panel_cost * kPiecePanels;
        const std::int64_t stretches = 2 * piece_cost > kPieceCost ? 2 * resources_.pool->size() : 0;
        const std::int64_t stretch = stretches > 0 ? panels * 3 / 4 / stretches : 0;
        const std::int64_t pieces = (panels - stretches * stretch + kPiecePanels - 1) / kPiecePanels;
        share(stretches + pieces, piece_cost, [&](int thread, std::int64_t begin, std::int64_t end) {
            const auto first_panel = [&](std::int64_t i) {
                return i <= stretches ? i * stretch : stretches * stretch + (i - stretches) * kPiecePanels;
            };
            multiply(thread, 0, rows, first_panel(begin), first_panel(end));
        });
        return;
    }
    // Blocks of nearly equal size, of whole tiles; those of one piece of the matrix come one after the other, while it
    // is in the cache.
    const std::int64_t most_blocks = (rows + kLinearTokens - 1) / kLinearTokens;
    const std::int64_t tiles = (rows + tile - 1) / tile;
    const std::int64_t block_rows = std::min(rows, (tiles + most_blocks - 1) / most_blocks * tile);
    const std::int64_t blocks = (rows + block_rows - 1) / block_rows;
    const std::int64_t pieces = (panels + kPiecePanels - 1) / kPiecePanels;
    share(pieces * blocks, block_rows * panel_cost * kPiecePanels,
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t i = begin; i < end; ++i) {
                  const std::int64_t panel = i / blocks * kPiecePanels;
                  multiply(thread, i % blocks * block_rows, block_rows, panel, panel + kPiecePanels);
              }
          });
}

void Step::apply(const WriteKV& op) {
    const KVCache& cache = resources_.cache;
    const int heads = cache.shape().heads, head_dim = cache.shape().head_dim;
    const auto store = [&](std::int64_t t, std::int32_t first_page) {
        const std::int32_t position = batch_.positions[t];
        const std::int32_t page = batch_.page_ids[first_page + position / kPageSize];
        for (int head = 0; head < heads; ++head) {
            kernels_.store_kv({at(op.k, t) + std::int64_t{head} * head_dim, at(op.v, t) + std::int64_t{head} * head_dim,
                               cache.block(page, op.layer, head), position % kPageSize, head_dim, cache.shape().type});
        }
    };
    const std::int64_t tiles = static_cast<std::int64_t>(resources_.query_tiles.size());
    const std::int64_t cost = tokens_ * op.k.width * kExponentialCost / tiles;
    share(tiles, cost, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Executor::QueryTile& tile = resources_.query_tiles[static_cast<std::size_t>(i)];
            for (int k = 0; k < tile.count; ++k) store(tile.token + k, batch_.page_starts[tile.sequence]);
        }
    });
}

AttentionJob Step::attention_job(const Attention& op, std::int64_t unit, int thread) const {
    const KVCache& cache = resources_.cache;
    const int kv_heads = cache.shape().heads;
    const Executor::QueryTile& tile = resources_.query_tiles[static_cast<std::size_t>(unit / kv_heads)];
    const int head = static_cast<int>(unit % kv_heads);
    AttentionJob job = {};
    job.heads = op.num_heads / kv_heads;
    job.head_dim = cache.shape().head_dim;
    job.q = at(op.q, tile.token) + std::int64_t{head} * job.heads * job.head_dim;
    job.q_stride = stride(op.q);
    job.tokens = tile.count;
    job.position = batch_.positions[tile.token];
    job.scale = op.scale;
    job.window = op.window;
    job.cache = cache.block(0, op.layer, head);
    job.page_bytes = cache.page_bytes();
    job.page_ids = batch_.page_ids.data() + batch_.page_starts[tile.sequence];
    const std::int64_t oldest = op.window > 0 ? std::max<std::int64_t>(0, job.position - op.window + 1) : 0;
    job.page_begin = oldest / kPageSize;
    job.page_end = (job.position + tile.count - 1) / kPageSize + 1;
    job.kv_type = cache.shape().type;
    job.scratch = scratch(thread);
    return job;
}

void Step::attend_segment(AttentionJob job, std::int64_t segment, float* states) const {
    job.page_begin = std::max(job.page_begin, segment * kSegmentPages);
    job.page_end = std::min(job.page_end, (segment + 1) * kSegmentPages);
    job.states = states;
    kernels_.attention(job);
}

void Step::finish_attention(const Attention& op, std::int64_t unit, const AttentionJob& job, const float* states) {
    const int kv_heads = resources_.cache.shape().heads;
    const std::int32_t token = resources_.query_tiles[static_cast<std::size_t>(unit / kv_heads)].token;
    float* const out = at(op.out, token) + unit % kv_heads * job.heads * job.head_dim;
    kernels_.finish_attention(states, job.tokens, job.heads, job.head_dim, out, stride(op.out));
}

void Step::apply(const Attention& op) {
    const std::int64_t tiles = static_cast<std::int64_t>(resources_.query_tiles.size());
    const std::int64_t units = tiles * resources_.cache.shape().heads;
    const std::int64_t cost = attention_pages_ * op.q.width * kPageSize * 2 / units;
    if (tiles == tokens_ && units <= executor_.most_split_units()) return split_attention(op, units, cost);
    share(units, cost, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const AttentionJob job = attention_job(op, unit, thread);
            float* const states = job.scratch + kernels_.attention_scratch(job.head_dim);
            float* const later = states + executor_.state_floats_ * kQueryTokens;
            const std::int64_t first = job.page_begin / kSegmentPages;
            for (std::int64_t segment = first; segment * kSegmentPages < job.page_end; ++segment) {
                attend_segment(job, segment, segment == first ? states : later);
                if (segment > first) kernels_.merge_attention(states, later, job.tokens * job.heads, job.head_dim);
                if (cancelled()) return;
            }
            finish_attention(op, unit, job, states);
        }
    });
}

void Step::split_attention(const Attention& op, std::int64_t units, std::int64_t cost) {
    const std::int64_t segments = (longest_ - 1) / (kSegmentPages * kPageSize) + 1;
    const auto states = [&](std::int64_t unit, std::int64_t segment) {
        return resources_.partial_states.floats() +
               static_cast<std::size_t>(unit * segments + segment) * executor_.state_floats_;
    };
    share(units * segments, cost / segments, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const AttentionJob job = attention_job(op, i / segments, thread);
            const std::int64_t segment = i % segments;
            if (segment < job.page_begin / kSegmentPages || segment * kSegmentPages >= job.page_end) continue;
            attend_segment(job, segment, states(i / segments, segment));
        }
    });
    for (std::int64_t unit = 0; unit < units && !cancelled(); ++unit) {
        const AttentionJob job = attention_job(op, unit, 0);
        const std::int64_t first = job.page_begin / kSegmentPages;
        for (std::int64_t segment = first + 1; segment * kSegmentPages < job.page_end; ++segment) {
            kernels_.merge_attention(states(unit, first), states(unit, segment), job.heads, job.head_dim);
        }
        finish_attention(op, unit, job, states(unit, first));
    }
}

}  // namespace windlass
