// Attention over keys and values as floats, from whatever they are kept as. Included once, inside an unnamed namespace.

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

// A block's keys and values as floats, page by page.
struct FloatBlock {
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
FloatBlock load_block(const AttentionJob& job, std::int64_t page, std::int64_t end) {
    const std::int64_t key_floats = static_cast<std::int64_t>(job.head_dim) * kPageSize;
    const std::int64_t floats = key_floats + static_cast<std::int64_t>(padded(job.head_dim)) * kPageSize;
    FloatBlock block;
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

// Scores of a block's keys, one set of kBlockVectors per query, to be scaled.
template <int Queries>
void block_scores(const FloatBlock& block, const float* const* q, int head_dim, F32 (*scores)[kBlockVectors]) {
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
                scores[query][page * kKeyVectors + i] = sums[query][i];
            }
        }
    }
}

// sum = sum * correction + weights . values over keys begin .. end - 1, the only ones looked at: others may hold
// anything, NaN included.
template <int Queries, int Vectors>
WINDLASS_INLINE void add_values(const FloatBlock& block, int width, int d, const QueryGroup& group,
                                const QueryStates& states, const F32* corrections, const float (*weights)[kBlockKeys]) {
    F32 sums[Queries][Vectors];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sums[query][v] = load(states.sum(group.first + query) + d + v * kLanes) * corrections[query];
        }
    }
    for (int key = group.begin; key < group.end; ++key) {
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
        for (int v = 0; v < Vectors; ++v) store(states.sum(group.first + query) + d + v * kLanes, sums[query][v]);
    }
}

template <int Queries>
void attend_floats(const AttentionJob& job, const FloatBlock& block, const QueryGroup& group,
                   const QueryStates& states) {
    F32 scores[Queries][kBlockVectors], weights[Queries][kBlockVectors], corrections[Queries];
    block_scores<Queries>(block, group.q, job.head_dim, scores);
    const F32 scales = scale_scores<Queries>(job, splat(job.scale), scores);
    block_weights<Queries>(scores, scales, group, states, weights, corrections);
    float stored[Queries][kBlockKeys];
    for (int query = 0; query < Queries; ++query) {
        for (int v = 0; v < kBlockVectors; ++v) store(stored[query] + v * kLanes, weights[query][v]);
    }
    const int width = padded(job.head_dim);
    int d = 0;
    for (; d + kSumVectors * kLanes <= width; d += kSumVectors * kLanes) {
        add_values<Queries, kSumVectors>(block, width, d, group, states, corrections, stored);
    }
    for (; d < width; d += kLanes) add_values<Queries, 1>(block, width, d, group, states, corrections, stored);
}

using AttendFloats = void (*)(const AttentionJob&, const FloatBlock&, const QueryGroup&, const QueryStates&);
constexpr AttendFloats kAttendFloats[kSharedQueries] = {attend_floats<1>, attend_floats<2>, attend_floats<3>,
                                                        attend_floats<4>};
