// Attention over keys and values kept as codes of 14 bits (KVType::kInt16). Included once, inside an unnamed namespace.
//
// As in attention.inl, but products are of integers, two at a time, and their sums exact: a query becomes codes with a
// scale, and so do, for each block, the weights of its keys times the scales of their values. Nothing is widened first:
// the pairs lie in the cache as they are multiplied.

constexpr int kKeyCode = 8191;
// The largest code of a query or a weight, and the most that the magnitudes of the codes of one add up to, not counting
// that each may be rounded up by a half.
constexpr int kFactorCode = 32767;
constexpr int kFactorSum = 261'000;
static_assert(std::int64_t{kFactorSum + kMostCodedHead / 2} * kKeyCode <= 0x7FFFFFFF && kMostCodedHead >= kBlockKeys);
// Bytes of a pair of codes.
constexpr std::int64_t kPairBytes = 4;

// Lane by lane the sums of products of pairs of signed numbers. Sums of what is stored fit; what nobody stored may
// overflow, and is not looked at.
struct PairSums {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512VNNI__)
    WINDLASS_INLINE void add(I16 a, I16 b) { sum = (I32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512BW__)
    WINDLASS_INLINE void add(I16 a, I16 b) {
        sum = (I32)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)a, (__m512i)b));
    }
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVXVNNI__)
    WINDLASS_INLINE void add(I16 a, I16 b) { sum = (I32)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b); }
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    WINDLASS_INLINE void add(I16 a, I16 b) {
        sum = (I32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
    }
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__ARM_NEON)
    WINDLASS_INLINE void add(I16 a, I16 b) {
        const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
        sum = vmlal_s16(sum, vget_low_s16(x), vget_low_s16(y));
        high = vmlal_high_s16(high, x, y);
    }
    WINDLASS_INLINE I32 total() const { return vpaddq_s32(sum, high); }
    I32 high = {};
#else
    WINDLASS_INLINE void add(I16 a, I16 b) {
        const U32 first = (U32)((I32)((U32)a << 16) >> 16) * (U32)((I32)((U32)b << 16) >> 16);
        const U32 second = (U32)((I32)a >> 16) * (U32)((I32)b >> 16);
        sum = (I32)((U32)sum + first + second);
    }
#endif
#if defined(WINDLASS_NO_INTRINSICS) || !defined(__ARM_NEON)
    WINDLASS_INLINE I32 total() const { return sum; }
#endif
    I32 sum = {};
};

// Where things are in a page part.
struct CodeLayout {
    std::int64_t width;   // of a row of values, in pairs
    std::int64_t values;  // bytes before them
    std::int64_t scales;

    WINDLASS_INLINE explicit CodeLayout(int head_dim)
        : width(padded(head_dim)),
          values((head_dim + 1) / 2 * kPageSize * kPairBytes),
          scales(values + width * (kPageSize / 2) * kPairBytes) {}
};

typedef std::int16_t Codes16 __attribute__((vector_size(kLanes * 2)));
WINDLASS_INLINE void store_codes16(std::int16_t* to, I32 codes) {
    const Codes16 narrow = __builtin_convertvector(codes, Codes16);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}
// A pair of codes in all lanes.
WINDLASS_INLINE I16 splat_pair(const std::int16_t* pair) {
    return (I16)splat(load_four(reinterpret_cast<const std::uint8_t*>(pair)));
}

// The codes of a key or a value, each put where at(column) is, and their scale.
template <typename At>
WINDLASS_INLINE float store_key_codes(const float* x, int head_dim, const At& at) {
    const float scale = code_magnitude(x, head_dim) / static_cast<float>(kKeyCode);
    // A scale of NaN decides the value whatever the code.
    const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    for_vectors(head_dim, [&](std::int64_t d, std::int64_t count) {
        std::int16_t codes[kLanes];
        store_codes16(codes, round_to_integer(load_some(x + d, count) * inverse));
        for (std::int64_t i = 0; i < count; ++i) *at(d + i) = codes[i];
    });
    return scale;
}

void store_pairs(const StoreKVJob& job) {
    const CodeLayout layout(job.head_dim);
    std::int16_t* const keys = reinterpret_cast<std::int16_t*>(job.block) + job.slot * 2;
    std::int16_t* const values =
        reinterpret_cast<std::int16_t*>(job.block + layout.values) + job.slot / 2 * layout.width * 2 + job.slot % 2;
    float* const scales = reinterpret_cast<float*>(job.block + layout.scales) + job.slot;
    scales[0] =
        store_key_codes(job.k, job.head_dim, [keys](std::int64_t d) { return keys + d / 2 * kPageSize * 2 + d % 2; });
    scales[kPageSize] = store_key_codes(job.v, job.head_dim, [values](std::int64_t d) { return values + d * 2; });
}

// What codes of factors are multiples of, and its inverse: 0 and 0 when all factors count as zero. When one is not
// finite the step is not either, and what comes of it is NaN.
struct CodeStep {
    F32 step;
    F32 inverse;
};
// From the bits of the largest magnitude, those of anything not finite above all others, and the sum of the magnitudes.
WINDLASS_INLINE CodeStep code_step(U32 largest, F32 sum) {
    const F32 magnitude = (F32)largest;
    const F32 step = maximum(sum * (1.0F / kFactorSum), magnitude * (1.0F / kFactorCode));
    const I32 zero = magnitude < kSmallestMagnitude;
    return {select(zero, F32{}, step), select(zero, F32{}, 1.0F / step)};
}

WINDLASS_INLINE U32 larger(U32 a, U32 b) { return a > b ? a : b; }

// Stores codes of factors: the 16 lowest bits of the sums.
WINDLASS_INLINE void store_factor_codes(std::int16_t* to, F32 factors, F32 inverse) {
    store_codes16(to, (I32)multiply_add(factors, inverse, splat(kRounder)));
}

void quantize_query(const float* q, int head_dim, const QueryStates& states, int query) {
    F32 sum = {};
    for_vectors(head_dim,
                [&](std::int64_t d, std::int64_t count) { sum += (F32)((I32)load_some(q + d, count) & 0x7FFFFFFF); });
    const CodeStep step = code_step((U32)splat(largest_magnitude(q, head_dim)), splat(sum_lanes(sum)));
    store_part(states.code_scales + query * kOwnLanes, step.step, kOwnLanes);
    for_vectors(head_dim, [&](std::int64_t d, std::int64_t count) {
        store_factor_codes(states.query_codes(query) + d, load_some(q + d, count), step.inverse);
    });
}

// A block's page parts, and the parts that are read next, which are fetched meanwhile.
struct CodeBlock {
    const std::uint8_t* pages[kBlockPages];
    const std::uint8_t* ahead[kBlockPages];
};

// Pages from `page` on; those from the job's end on repeat the one before it, and are not looked at.
CodeBlock code_block(const AttentionJob& job, std::int64_t page) {
    CodeBlock block;
    for (int i = 0; i < kBlockPages; ++i) {
        const std::int64_t own = smaller(page + i, job.page_end - 1), later = own + kBlockPages;
        block.pages[i] = job.cache + job.page_ids[own] * job.page_bytes;
        block.ahead[i] = later < job.page_end ? job.cache + job.page_ids[later] * job.page_bytes : block.pages[i];
    }
    return block;
}

// Scores to be multiplied by the scale of the query.
template <int Queries>
WINDLASS_INLINE void code_scores(const AttentionJob& job, const CodeBlock& block, const QueryGroup& group,
                                 const QueryStates& states, F32 (*scores)[kBlockVectors]) {
    constexpr int kVectorsAtOnce = kScorePages * kKeyVectors;
    const std::int64_t pairs = (job.head_dim + 1) / 2;
    const CodeLayout layout(job.head_dim);
    const std::int16_t* codes[Queries];
    for (int query = 0; query < Queries; ++query) codes[query] = states.query_codes(group.first + query);
#pragma GCC unroll 4
    for (int page = 0; page < kBlockPages; page += kScorePages) {
        PairSums sums[Queries][kVectorsAtOnce];
        for (std::int64_t pair = 0; pair < pairs; ++pair) {
            const std::int64_t at = pair * kPageSize * kPairBytes;
            if (group.fetch) {
#pragma GCC unroll 4
                for (int i = 0; i < kScorePages; ++i) __builtin_prefetch(block.ahead[page + i] + at, 0, 3);
            }
            I16 keys[kVectorsAtOnce];
#pragma GCC unroll 16
            for (int i = 0; i < kVectorsAtOnce; ++i) {
                keys[i] = load_as<I16>(block.pages[page + i / kKeyVectors] + at + i % kKeyVectors * kLanes * 4);
            }
#pragma GCC unroll 4
            for (int query = 0; query < Queries; ++query) {
                const I16 value = splat_pair(codes[query] + pair * 2);
#pragma GCC unroll 16
                for (int i = 0; i < kVectorsAtOnce; ++i) sums[query][i].add(keys[i], value);
            }
        }
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 16
            for (int i = 0; i < kVectorsAtOnce; ++i) {
                scores[query][page * kKeyVectors + i] = __builtin_convertvector(sums[query][i].total(), F32);
            }
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < kBlockVectors; ++v) {
        const std::uint8_t* const scales = block.pages[v / kKeyVectors] + layout.scales;
        const F32 scale = load(reinterpret_cast<const float*>(scales) + v % kKeyVectors * kLanes);
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) scores[query][v] *= scale;
    }
}

// The weights of a block's keys, times the scales of their values, as codes; `steps` turn sums of these into values.
template <int Queries>
WINDLASS_INLINE void weight_codes(const AttentionJob& job, const CodeBlock& block, const QueryGroup& group,
                                  const F32 (*weights)[kBlockVectors], std::int16_t (*codes)[kBlockKeys], F32* steps) {
    const CodeLayout layout(job.head_dim);
    const bool all = group.begin == 0 && group.end == kBlockKeys;
    F32 scaled[Queries][kBlockVectors], sums[Queries];
    U32 largest[Queries];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        largest[query] = U32{};
        sums[query] = F32{};
    }
#pragma GCC unroll 16
    for (int v = 0; v < kBlockVectors; ++v) {
        const std::uint8_t* const page_scales = block.pages[v / kKeyVectors] + layout.scales;
        F32 scale = load(reinterpret_cast<const float*>(page_scales) + kPageSize + v % kKeyVectors * kLanes);
        // Those of keys that are not seen may be anything, NaN included.
        if (!all) scale = select(keys_between(v, group.begin, group.end), scale, F32{});
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) {
            scaled[query][v] = weights[query][v] * scale;
            // No scale and no weight is negative, and a NaN, of either sign, is above all other bits.
            largest[query] = larger(largest[query], (U32)scaled[query][v]);
            sums[query] += scaled[query][v];
        }
    }
    const CodeStep step = code_step(combine_each<Queries>(largest, larger), sum_each<Queries>(sums));
    F32 inverse[Queries];
    spread_each<Queries>(step.inverse, inverse);
    spread_each<Queries>(step.step, steps);
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
#pragma GCC unroll 16
        for (int v = 0; v < kBlockVectors; ++v) {
            store_factor_codes(codes[query] + v * kLanes, scaled[query][v], inverse[query]);
        }
    }
}

// sum = sum * correction + weights . values over the pairs of keys with one that is seen: the other has weight 0.
template <int Queries, int Vectors>
WINDLASS_INLINE void add_code_values(const CodeBlock& block, const CodeLayout& layout, int d, const QueryGroup& group,
                                     const QueryStates& states, const std::int16_t (*codes)[kBlockKeys],
                                     const F32* steps, const F32* corrections) {
    constexpr int kLines = (Vectors * kLanes * kPairBytes + 63) / 64;
    PairSums sums[Queries][Vectors];
    const int end = (group.end + 1) / 2;
    for (int pair = group.begin / 2; pair < end; ++pair) {
        const int page = pair / (kPageSize / 2);
        const std::int64_t at = layout.values + (pair % (kPageSize / 2) * layout.width + d) * kPairBytes;
        if (group.fetch) {
#pragma GCC unroll 4
            for (int i = 0; i < kLines; ++i) __builtin_prefetch(block.ahead[page] + at + i * 64, 0, 3);
        }
        I16 values[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) values[v] = load_as<I16>(block.pages[page] + at + v * kLanes * kPairBytes);
#pragma GCC unroll 4
        for (int query = 0; query < Queries; ++query) {
            const I16 weight = splat_pair(codes[query] + pair * 2);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sums[query][v].add(values[v], weight);
        }
    }
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        float* const sum = states.sum(group.first + query) + d;
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            const F32 added = __builtin_convertvector(sums[query][v].total(), F32);
            store(sum + v * kLanes, multiply_add(added, steps[query], load(sum + v * kLanes) * corrections[query]));
        }
    }
}

template <int Queries>
void attend_codes(const AttentionJob& job, const CodeBlock& block, const QueryGroup& group, const QueryStates& states) {
    F32 scores[Queries][kBlockVectors], weights[Queries][kBlockVectors], corrections[Queries], steps[Queries];
    code_scores<Queries>(job, block, group, states, scores);
    const F32 query_scales = load(states.code_scales + group.first * kOwnLanes);
    const F32 scales = scale_scores<Queries>(job, query_scales * job.scale, scores);
    block_weights<Queries>(scores, scales, group, states, weights, corrections);
    std::int16_t codes[Queries][kBlockKeys];
    weight_codes<Queries>(job, block, group, weights, codes, steps);
    const CodeLayout layout(job.head_dim);
    int d = 0;
    for (; d + kSumVectors * kLanes <= layout.width; d += kSumVectors * kLanes) {
        add_code_values<Queries, kSumVectors>(block, layout, d, group, states, codes, steps, corrections);
    }
    for (; d < layout.width; d += kLanes) {
        add_code_values<Queries, 1>(block, layout, d, group, states, codes, steps, corrections);
    }
}

using AttendCodes = void (*)(const AttentionJob&, const CodeBlock&, const QueryGroup&, const QueryStates&);
constexpr AttendCodes kAttendCodes[kSharedQueries] = {attend_codes<1>, attend_codes<2>, attend_codes<3>,
                                                      attend_codes<4>};
