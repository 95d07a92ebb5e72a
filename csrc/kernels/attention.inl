// Attention over a paged KV cache. Included once, inside an unnamed namespace.
//
// A page part (one layer, one KV head) holds keys as [head_dim][kPageSize], so that lanes run over keys, then values as
// [kPageSize][padded head_dim], so that lanes run over the head. With kInt8 and kInt16 there follow two scales (float)
// per token, all of the keys and then all of the values. With kInt16 the codes of two columns of a key lie together,
// [pair of columns][kPageSize][2], and those of two tokens of the values, [pair of tokens][padded head_dim][2]. A query
// walks the blocks of kBlockPages pages of a segment in order with an online softmax (Milakov and Gimelshein, 2018),
// and the results of its segments are merged in order. Pages, blocks and segments are counted from position 0, so that
// the result does not depend on what else is in the job, nor on who computes which segment.

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

constexpr float kLog2E = 1.44269504F;

// Numbers of up to kSharedQueries queries in one vector: query i's in the kOwnLanes lanes from i * kOwnLanes on.
constexpr int kOwnLanes = kLanes / kSharedQueries;

// Halves of each `width` lanes, those of `a` before those of `b`: the first halves, or the second ones.
template <int width, bool second>
struct Halves {
    static constexpr int kHalf = width / 2;
    static constexpr int at(int lane) {
        const int of_one = lane % (kLanes / 2);
        return lane / (kLanes / 2) * kLanes + of_one / kHalf * width + of_one % kHalf + (second ? kHalf : 0);
    }
};
// What combines half as many lanes of `a`, and of `b`.
template <int width, typename Vector, typename Combine>
WINDLASS_INLINE Vector combine_halves(Vector a, Vector b, const Combine& combine) {
    return combine(shuffle<Halves<width, false>>(a, b), shuffle<Halves<width, true>>(a, b));
}

// Combines all lanes of each query's vector, in the order of combine_lanes whatever the number of queries.
template <int Queries, typename Vector, typename Combine>
WINDLASS_INLINE Vector combine_each(const Vector* v, const Combine& combine) {
    if constexpr (Queries == 1) {
        return combine_lanes(v[0], combine);
    } else {
        Vector last = {}, second = {};
        if constexpr (Queries == 4) last = v[3];
        if constexpr (Queries > 2) second = combine_halves<kLanes>(v[2], last, combine);
        Vector each = combine_halves<kLanes / 2>(combine_halves<kLanes>(v[0], v[1], combine), second, combine);
        if constexpr (kOwnLanes >= 4) each = combine(each, rotate<2, kOwnLanes>(each));
        if constexpr (kOwnLanes >= 2) each = combine(each, rotate<1, kOwnLanes>(each));
        return each;
    }
}
template <int Queries>
WINDLASS_INLINE F32 sum_each(const F32* v) {
    return combine_each<Queries>(v, [](F32 a, F32 b) { return a + b; });
}
template <int Queries>
WINDLASS_INLINE F32 max_each(const F32* v) {
    return combine_each<Queries>(v, [](F32 a, F32 b) { return maximum(a, b); });
}

// Puts each query's number into all lanes of a vector of its own.
template <int query>
struct OwnLanes {
    static constexpr int at(int lane) { return query * kOwnLanes + lane % kOwnLanes; }
};
template <int Queries>
WINDLASS_INLINE void spread_each(F32 numbers, F32* of_queries) {
    of_queries[0] = shuffle<OwnLanes<0>>(numbers, numbers);
    if constexpr (Queries > 1) of_queries[1] = shuffle<OwnLanes<1>>(numbers, numbers);
    if constexpr (Queries > 2) of_queries[2] = shuffle<OwnLanes<2>>(numbers, numbers);
    if constexpr (Queries > 3) of_queries[3] = shuffle<OwnLanes<3>>(numbers, numbers);
}
template <int Queries>
WINDLASS_INLINE void store_each(float* to, F32 numbers) {
    store_part(to, numbers, Queries * kOwnLanes);
}

// What the queries of a job have seen so far. A score is an exponent of 2, and the weight of a value that power
// relative to the largest score. The numbers of a query stand in kOwnLanes floats each, before the rows of all queries;
// a vector is read at a time, whatever follows the last of them.
struct QueryStates {
    float* maxima;       // of the scores
    float* weights;      // their sums
    float* code_scales;  // with kInt16, of the query itself
    float* rows;         // the sum of the values, then with kInt16 the query's codes
    std::int64_t stride;
    std::int64_t codes;  // floats before them

    QueryStates(float* states, int head_dim, int queries)
        : maxima(states),
          weights(maxima + queries * kOwnLanes),
          code_scales(weights + queries * kOwnLanes),
          rows(states + queries * kHeadPadding),
          stride(padded(head_dim) + padded((head_dim + 1) / 2)),
          codes(padded(head_dim)) {}

    WINDLASS_INLINE float* sum(int query) const { return rows + query * stride; }  // [padded head_dim]
    WINDLASS_INLINE std::int16_t* query_codes(int query) const {                   // [padded head_dim], with kInt16
        return reinterpret_cast<std::int16_t*>(sum(query) + codes);
    }
};
static_assert(3 * kOwnLanes <= kHeadPadding && kLanes <= kHeadPadding);

std::size_t attention_state(int head_dim) {
    return static_cast<std::size_t>(padded(head_dim) + kHeadPadding + padded((head_dim + 1) / 2));
}

// Keys of the block from `page` on that the query of a token at `position` sees.
struct KeyRange {
    int begin;
    int end;
};
WINDLASS_INLINE KeyRange keys_seen(const AttentionJob& job, std::int64_t token, std::int64_t page) {
    const std::int64_t position = job.position + token;
    std::int64_t oldest = job.window > 0 && position >= job.window ? position - job.window + 1 : 0;
    if (job.chunk > 0) oldest = position / job.chunk * job.chunk;
    const std::int64_t newest = job.last >= 0 ? job.last : position;
    const std::int64_t begin = oldest - page * kPageSize, end = newest + 1 - page * kPageSize;
    return {static_cast<int>(begin < 0 ? 0 : smaller(begin, kBlockKeys)),
            static_cast<int>(end < 0 ? 0 : smaller(end, kBlockKeys))};
}

// Some queries, one after the other, that see the same keys of a block, begin .. end - 1.
struct QueryGroup {
    const float* q[kSharedQueries];
    int first;
    int count;
    int begin;
    int end;
    bool fetch;  // the first group of a block, which fetches the next block
};

// Whether the keys of vector `v` of a block are among begin .. end - 1.
WINDLASS_INLINE I32 keys_between(int v, int begin, int end) {
    I32 key;
    for (int i = 0; i < kLanes; ++i) key[i] = v * kLanes + i;
    return (key >= begin) & (key < end);
}

// What the scores are to be multiplied by to be exponents of 2, when `scales` make them exponents of e: with a softcap
// they are squeezed into -softcap .. softcap first.
template <int Queries>
WINDLASS_INLINE F32 scale_scores(const AttentionJob& job, F32 scales, F32 (*scores)[kBlockVectors]) {
    if (job.softcap == 0.0F) return scales * kLog2E;
    F32 scale[Queries];
    spread_each<Queries>(scales, scale);
    for (int query = 0; query < Queries; ++query) {
        for (int v = 0; v < kBlockVectors; ++v) {
            scores[query][v] = hyperbolic_tangent(scores[query][v] * scale[query] / job.softcap) * job.softcap;
        }
    }
    return splat(kLog2E);
}

// Turns the scores of the keys of a block that are seen, which times `scales` (positive) are exponents of 2, into
// weights, 0 for the others, and finds what the queries' sums are to be multiplied by. Each step is taken for all
// queries before the next one, which has to wait for it.
template <int Queries>
WINDLASS_INLINE void block_weights(const F32 (*scores)[kBlockVectors], F32 scales, const QueryGroup& group,
                                   const QueryStates& states, F32 (*weights)[kBlockVectors], F32* corrections) {
    const bool all = group.begin == 0 && group.end == kBlockKeys;
    I32 seen[kBlockVectors];
    if (!all) {
        for (int v = 0; v < kBlockVectors; ++v) seen[v] = keys_between(v, group.begin, group.end);
    }
    F32 highest[Queries];
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        highest[query] = splat(-__builtin_inff());
#pragma GCC unroll 16
        for (int v = 0; v < kBlockVectors; ++v) {
            const F32 score = scores[query][v];
            highest[query] = all ? maximum(highest[query], score)
                                 : select(seen[v] & (score > highest[query]), score, highest[query]);
        }
    }
    float* const old_maxima = states.maxima + group.first * kOwnLanes;
    float* const old_sums = states.weights + group.first * kOwnLanes;
    const F32 old = load(old_maxima), maxima = maximum(max_each<Queries>(highest) * scales, old);
    F32 scale[Queries], maximum_of[Queries], totals[Queries];
    spread_each<Queries>(scales, scale);
    spread_each<Queries>(maxima, maximum_of);
#pragma GCC unroll 4
    for (int query = 0; query < Queries; ++query) {
        totals[query] = F32{};
#pragma GCC unroll 16
        for (int v = 0; v < kBlockVectors; ++v) {
            F32 weight = power_of_two(scores[query][v] * scale[query] - maximum_of[query]);
            if (!all) weight = select(seen[v], weight, F32{});
            weights[query][v] = weight;
            totals[query] += weight;
        }
    }
    const F32 correction = power_of_two(old - maxima);
    spread_each<Queries>(correction, corrections);
    store_each<Queries>(old_sums, multiply_add(load(old_sums), correction, sum_each<Queries>(totals)));
    store_each<Queries>(old_maxima, maxima);
}
