// Attention over a paged KV cache. Included once, inside an unnamed namespace.
//
// A page part (one layer, one KV head) holds keys as [head_dim][kPageSize], so that lanes run over keys, then values as
// [kPageSize][padded head_dim], so that lanes run over the head. With kInt8 there follow two scales (float) per token,
// all of the keys and then all of the values. A query walks the blocks of kBlockPages pages of a segment in order with
// an online softmax (Milakov and Gimelshein, 2018), and the results of its segments are merged in order. Pages, blocks
// and segments are counted from position 0, so that the result does not depend on what else is in the job, nor on who
// computes which segment.

constexpr int kBlockPages = 4;
constexpr int kBlockKeys = kBlockPages * kPageSize;
static_assert(kSegmentPages % kBlockPages == 0);
constexpr int kKeyVectors = kPageSize / kLanes;
constexpr int kBlockVectors = kBlockPages * kKeyVectors;
// Queries that share each load of keys and values.
constexpr int kSharedQueries = 4;
// Register tiles: pages whose scores, and vectors of the head whose sums, are computed together.
constexpr int kScorePages = kLanes == 16 ? kBlockPages : 1;
constexpr int kSumVectors = kLanes == 8 ? 2 : 4;

WINDLASS_INLINE int padded(int head_dim) { return (head_dim + kHeadPadding - 1) / kHeadPadding * kHeadPadding; }

// What a query has seen so far: the sum of its values, weighted with exponentials relative to the largest score.
struct QueryState {
    float* sum;  // [padded head_dim]
    float* maximum;
    float* exponentials;
};

WINDLASS_INLINE QueryState query_state(float* states, int head_dim, int query) {
    float* const sum = states + query * static_cast<std::int64_t>(padded(head_dim) + kHeadPadding);
    return {sum, sum + padded(head_dim), sum + padded(head_dim) + 1};
}

std::size_t attention_state(int head_dim) { return static_cast<std::size_t>(padded(head_dim) + kHeadPadding); }

// Keys and values of a block as floats.
std::size_t attention_scratch(int head_dim) {
    return static_cast<std::size_t>(head_dim + padded(head_dim)) * kBlockKeys;
}

template <typename Element, typename Convert>
WINDLASS_INLINE void store_elements(const StoreKVJob& job, const Convert& key, const Convert& value) {
    const int width = padded(job.head_dim);
    Element* const keys = reinterpret_cast<Element*>(job.block) + job.slot;
    Element* const values = reinterpret_cast<Element*>(job.block) + job.head_dim * kPageSize + job.slot * width;
    for (int d = 0; d < job.head_dim; ++d) keys[d * kPageSize] = key(job.k[d]);
    for (int d = 0; d < job.head_dim; ++d) values[d] = value(job.v[d]);
}

void store_codes(const StoreKVJob& job) {
    float* const scales = reinterpret_cast<float*>(job.block + (job.head_dim + padded(job.head_dim)) * kPageSize);
    float* const key_scale = scales + job.slot;
    float* const value_scale = key_scale + kPageSize;
    *key_scale = code_magnitude(job.k, job.head_dim) / 127.0F;
    *value_scale = code_magnitude(job.v, job.head_dim) / 127.0F;
    const auto code_with = [](float scale) {
        // A scale of 0 or NaN decides the value whatever the code.
        const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
        return [inverse](float x) {
            return inverse > 0.0F ? static_cast<std::int8_t>(__builtin_rintf(x * inverse)) : std::int8_t{0};
        };
    };
    store_elements<std::int8_t>(job, code_with(*key_scale), code_with(*value_scale));
}

void store_kv(const StoreKVJob& job) {
    switch (job.kv_type) {
        case KVType::kF32: {
            const auto same = [](float x) { return x; };
            return store_elements<float>(job, same, same);
        }
        case KVType::kF16:
            return store_elements<std::uint16_t>(job, to_f16, to_f16);
        case KVType::kBF16:
            return store_elements<std::uint16_t>(job, to_bf16, to_bf16);
        case KVType::kInt8:
            return store_codes(job);
    }
}

// A block's keys and values as floats, page by page.
struct Block {
    const float* keys[kBlockPages];
    const float* values[kBlockPages];
};

// A page part as floats. Meanwhile what lies at `ahead`, a part read later, is fetched: parts are too short for the
// processor to see it coming.
void widen_page(const std::uint8_t* from, const std::uint8_t* ahead, KVType type, int head_dim, float* to) {
    const std::int64_t width = padded(head_dim);
    const std::int64_t key_count = static_cast<std::int64_t>(head_dim) * kPageSize,
                       count = key_count + width * kPageSize;
    const std::uint16_t* const halves = reinterpret_cast<const std::uint16_t*>(from);
    if (type == KVType::kF16) {
        for (std::int64_t i = 0; i < count; i += kLanes) {
            __builtin_prefetch(ahead + i * 2, 0, 2);
            store(to + i, load_f16(halves + i));
        }
    } else if (type == KVType::kBF16) {
        for (std::int64_t i = 0; i < count; i += kLanes) {
            __builtin_prefetch(ahead + i * 2, 0, 2);
            store(to + i, load_bf16(halves + i));
        }
    } else {
        const float* const scales = reinterpret_cast<const float*>(from + count);
        for (std::int64_t i = 0; i < key_count; i += kLanes) {
            __builtin_prefetch(ahead + i, 0, 2);
            store(to + i, load_codes(from + i) * load(scales + i % kPageSize));
        }
        for (std::int64_t i = key_count; i < count; i += kLanes) {
            __builtin_prefetch(ahead + i, 0, 2);
            store(to + i, load_codes(from + i) * splat(scales[kPageSize + (i - key_count) / width]));
        }
    }
}

// Pages from `page` on; those from `end` on repeat the one before it, and are not looked at.
Block load_block(const AttentionJob& job, std::int64_t page, std::int64_t end) {
    const std::int64_t key_floats = static_cast<std::int64_t>(job.head_dim) * kPageSize;
    const std::int64_t floats = key_floats + static_cast<std::int64_t>(padded(job.head_dim)) * kPageSize;
    Block block;
    for (int i = 0; i < kBlockPages; ++i) {
        if (page + i >= end) {
            block.keys[i] = block.keys[i - 1];
            block.values[i] = block.values[i - 1];
            continue;
        }
        const std::uint8_t* const part = job.cache + job.page_ids[page + i] * job.page_bytes;
        const float* from = reinterpret_cast<const float*>(part);
        if (job.kv_type != KVType::kF32) {
            float* const to = job.scratch + i * floats;
            const std::int64_t later = page + i + kBlockPages;
            const std::uint8_t* const ahead = later < end ? job.cache + job.page_ids[later] * job.page_bytes : part;
            widen_page(part, ahead, job.kv_type, job.head_dim, to);
            from = to;
        }
        block.keys[i] = from;
        block.values[i] = from + key_floats;
    }
    return block;
}

// Scores of a block's keys, one set of kBlockVectors per query.
template <int Queries>
void block_scores(const Block& block, const float* const* q, int head_dim, float scale, F32 (*scores)[kBlockVectors]) {
#pragma GCC unroll 4
    for (int page = 0; page < kBlockPages; page += kScorePages) {
        F32 sums[Queries][kScorePages * kKeyVectors] = {};
        for (int d = 0; d < head_dim; ++d) {
            F32 keys[kScorePages * kKeyVectors];
#pragma GCC unroll 16
            for (int i = 0; i < kScorePages * kKeyVectors; ++i) {
                keys[i] = load(block.keys[page + i / kKeyVectors] + d * kPageSize + i % kKeyVectors * kLanes);
            }
#pragma GCC unroll 4
            for (int query = 0; query < Queries; ++query) {
                const F32 value = splat(q[query][d]);
#pragma GCC unroll 16
                for (int i = 0; i < kScorePages * kKeyVectors; ++i) {
                    sums[query][i] = multiply_add(keys[i], value, sums[query][i]);
                }
            }
        }
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 16
            for (int i = 0; i < kScorePages * kKeyVectors; ++i) {
                scores[query][page * kKeyVectors + i] = sums[query][i] * scale;
            }
        }
    }
}

// Turns the scores of keys begin .. end - 1 of a block into weights, 0 for the others, and finds what the queries' sums
// are to be multiplied by. Each step is taken for all queries before the next one, which has to wait for it.
template <int Queries>
WINDLASS_INLINE void block_weights(const F32 (*scores)[kBlockVectors], int begin, int end, const QueryState* states,
                                   float (*weights)[kBlockKeys], float* corrections) {
    const bool all = begin == 0 && end == kBlockKeys;
    I32 seen[kBlockVectors];
    if (!all) {
        I32 lane;
        for (int i = 0; i < kLanes; ++i) lane[i] = i;
        for (int v = 0; v < kBlockVectors; ++v) seen[v] = (lane + v * kLanes >= begin) & (lane + v * kLanes < end);
    }
    F32 highest[Queries];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        highest[query] = splat(-__builtin_inff());
        for (int v = 0; v < kBlockVectors; ++v) {
            const F32 score = scores[query][v];
            highest[query] = all ? maximum(highest[query], score)
                                 : select(seen[v] & (score > highest[query]), score, highest[query]);
        }
    }
    float maxima[Queries];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        const float block_maximum = max_lanes(highest[query]), old_maximum = *states[query].maximum;
        maxima[query] = block_maximum > old_maximum ? block_maximum : old_maximum;
    }
    F32 totals[Queries] = {};
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        for (int v = 0; v < kBlockVectors; ++v) {
            F32 weight = exponential(scores[query][v] - maxima[query]);
            if (!all) weight = select(seen[v], weight, F32{});
            store(weights[query] + v * kLanes, weight);
            totals[query] += weight;
        }
    }
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        const QueryState& state = states[query];
        corrections[query] = exponential(splat(*state.maximum - maxima[query]))[0];
        *state.maximum = maxima[query];
        *state.exponentials = *state.exponentials * corrections[query] + sum_lanes(totals[query]);
    }
}

// sum = sum * correction + weights . values over keys begin .. end - 1, the only ones looked at: others may hold
// anything, NaN included.
template <int Queries, int Vectors>
WINDLASS_INLINE void add_values(const Block& block, int width, int d, int begin, int end, const float* corrections,
                                const float (*weights)[kBlockKeys], const QueryState* states) {
    F32 sums[Queries][Vectors];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sums[query][v] = load(states[query].sum + d + v * kLanes) * corrections[query];
        }
    }
    for (int key = begin; key < end; ++key) {
        const float* const value = block.values[key / kPageSize] + key % kPageSize * width + d;
        F32 values[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) values[v] = load(value + v * kLanes);
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) {
            const F32 weight = splat(weights[query][key]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sums[query][v] = multiply_add(weight, values[v], sums[query][v]);
        }
    }
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) store(states[query].sum + d + v * kLanes, sums[query][v]);
    }
}

// Shows keys begin .. end - 1 of a block to some queries.
template <int Queries>
void attend(const Block& block, const float* const* q, const QueryState* states, int head_dim, float scale, int begin,
            int end) {
    F32 scores[Queries][kBlockVectors];
    block_scores<Queries>(block, q, head_dim, scale, scores);
    float weights[Queries][kBlockKeys];
    float corrections[Queries];
    block_weights<Queries>(scores, begin, end, states, weights, corrections);
    const int width = padded(head_dim);
    int d = 0;
    for (; d + kSumVectors * kLanes <= width; d += kSumVectors * kLanes) {
        add_values<Queries, kSumVectors>(block, width, d, begin, end, corrections, weights, states);
    }
    for (; d < width; d += kLanes) add_values<Queries, 1>(block, width, d, begin, end, corrections, weights, states);
}

using Attend = void (*)(const Block&, const float* const*, const QueryState*, int, float, int, int);
constexpr Attend kAttend[kSharedQueries] = {attend<1>, attend<2>, attend<3>, attend<4>};

// Keys of the block from `page` on that the query of a token at `position` sees.
struct KeyRange {
    int begin;
    int end;
};
WINDLASS_INLINE KeyRange keys_seen(std::int64_t position, std::int64_t window, std::int64_t page) {
    const std::int64_t oldest = window > 0 && position >= window ? position - window + 1 : 0;
    const std::int64_t begin = oldest - page * kPageSize, end = position + 1 - page * kPageSize;
    return {static_cast<int>(begin < 0 ? 0 : smaller(begin, kBlockKeys)),
            static_cast<int>(end < 0 ? 0 : smaller(end, kBlockKeys))};
}

void attention(const AttentionJob& job) {
    const int queries = job.tokens * job.heads;
    for (int i = 0; i < queries; ++i) {
        const QueryState state = query_state(job.states, job.head_dim, i);
        __builtin_memset(state.sum, 0, static_cast<std::size_t>(padded(job.head_dim)) * sizeof(float));
        *state.maximum = -__builtin_inff();
        *state.exponentials = 0.0F;
    }
    const std::int64_t first = job.page_begin / kBlockPages * kBlockPages;
    for (std::int64_t page = first; page < job.page_end; page += kBlockPages) {
        const Block block = load_block(job, page, job.page_end);
        for (int i = 0; i < queries;) {
            const float* q[kSharedQueries];
            QueryState states[kSharedQueries];
            const KeyRange range = keys_seen(job.position + i / job.heads, job.window, page);
            int count = 0;
            // Queries that see the same keys.
            while (count < kSharedQueries && i < queries) {
                const int token = i / job.heads;
                const KeyRange own = keys_seen(job.position + token, job.window, page);
                if (own.begin != range.begin || own.end != range.end) break;
                q[count] = job.q + token * job.q_stride + static_cast<std::int64_t>(i % job.heads) * job.head_dim;
                states[count] = query_state(job.states, job.head_dim, i);
                ++count;
                ++i;
            }
            if (range.begin >= range.end) continue;
            kAttend[count - 1](block, q, states, job.head_dim, job.scale, range.begin, range.end);
        }
    }
}

void merge_attention(float* states, const float* later, int queries, int head_dim) {
    for (int i = 0; i < queries; ++i) {
        const QueryState state = query_state(states, head_dim, i);
        const QueryState other = query_state(const_cast<float*>(later), head_dim, i);
        if (*other.exponentials == 0.0F) continue;
        const float maximum = *state.maximum > *other.maximum ? *state.maximum : *other.maximum;
        const F32 a = exponential(splat(*state.maximum - maximum)), b = exponential(splat(*other.maximum - maximum));
        *state.maximum = maximum;
        *state.exponentials = *state.exponentials * a[0] + *other.exponentials * b[0];
        for (int d = 0; d < padded(head_dim); d += kLanes) {
            store(state.sum + d, load(state.sum + d) * a + load(other.sum + d) * b);
        }
    }
}

void finish_attention(const float* states, int tokens, int heads, int head_dim, float* out, std::int64_t out_stride) {
    for (int i = 0; i < tokens * heads; ++i) {
        const QueryState state = query_state(const_cast<float*>(states), head_dim, i);
        const F32 factor = splat(1.0F / *state.exponentials);
        float* const row = out + i / heads * out_stride + static_cast<std::int64_t>(i % heads) * head_dim;
        for_vectors(head_dim, [&](std::int64_t d, std::int64_t count) {
            store_some(row + d, load(state.sum + d) * factor, count);
        });
    }
}
