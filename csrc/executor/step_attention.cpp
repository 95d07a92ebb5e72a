// The KV cache and attention.
#include <algorithm>

#include "executor/step.h"

namespace windlass {
namespace {

// Query tokens that attend together when there are few, and how many tiles a thread should have before there are more.
constexpr std::int32_t kFewQueryTokens = 8;
constexpr std::int64_t kTilesPerThread = 16;

// Parts that the query heads of one KV head are cut into.
int head_parts(int heads) { return (heads + kUnitHeads - 1) / kUnitHeads; }

}  // namespace

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

std::int64_t Step::attention_units(const Attention& op) const {
    const int kv_heads = resources_.cache.shape().heads;
    const std::int64_t tiles = static_cast<std::int64_t>(resources_.query_tiles.size());
    return tiles * kv_heads * head_parts(op.num_heads / kv_heads);
}

AttentionJob Step::attention_job(const Attention& op, std::int64_t unit, int thread) const {
    const KVCache& cache = resources_.cache;
    const int kv_heads = cache.shape().heads, heads = op.num_heads / kv_heads, parts = head_parts(heads);
    const Executor::QueryTile& tile = resources_.query_tiles[static_cast<std::size_t>(unit / (kv_heads * parts))];
    const int kv_head = static_cast<int>(unit / parts % kv_heads);
    const int first = static_cast<int>(unit % parts) * kUnitHeads;
    AttentionJob job = {};
    job.heads = std::min(heads - first, kUnitHeads);
    job.head_dim = cache.shape().head_dim;
    job.q = at(op.q, tile.token) + std::int64_t{kv_head * heads + first} * job.head_dim;
    job.q_stride = stride(op.q);
    job.tokens = tile.count;
    job.position = batch_.positions[tile.token];
    job.scale = op.scale;
    job.window = op.window;
    job.chunk = op.chunk;
    job.last = op.causal ? -1 : batch_.positions[batch_.token_starts[tile.sequence + 1] - 1];
    job.softcap = op.softcap;
    job.cache = cache.block(0, op.layer, kv_head);
    job.page_bytes = cache.page_bytes();
    job.page_ids = batch_.page_ids.data() + batch_.page_starts[tile.sequence];
    std::int64_t oldest = op.window > 0 ? std::max<std::int64_t>(0, job.position - op.window + 1) : 0;
    if (op.chunk > 0) oldest = job.position / op.chunk * op.chunk;
    job.page_begin = oldest / kPageSize;
    job.page_end = (op.causal ? job.position + tile.count - 1 : job.last) / kPageSize + 1;
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

void Step::finish_attention(const Attention& op, const AttentionJob& job, const float* states) {
    // The outputs lie as the queries do.
    const std::int64_t from_first = job.q - at(op.q, 0);
    const std::int64_t token = from_first / stride(op.q), column = from_first % stride(op.q);
    const float* const sinks = vector(op.sinks);
    kernels_.finish_attention(states, job.tokens, job.heads, job.head_dim,
                              sinks == nullptr ? nullptr : sinks + column / job.head_dim, at(op.out, token) + column,
                              stride(op.out));
}

void Step::apply(const Attention& op) {
    const std::int64_t tiles = static_cast<std::int64_t>(resources_.query_tiles.size());
    const std::int64_t units = attention_units(op);
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
            finish_attention(op, job, states);
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
        finish_attention(op, job, states(unit, first));
    }
}

}  // namespace windlass
