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

// What a query has seen so far: the sum of its values, weighted with exponentials relative to the largest score.
struct QueryState {
    float* sum;  // [padded head_dim]
    float* maximum;
    float* exponentials;
    // With kInt16, the query itself.
    float* code_scale;
    std::int16_t* codes;  // [padded head_dim]
};

std::size_t attention_state(int head_dim) {
    return static_cast<std::size_t>(padded(head_dim) + kHeadPadding + padded((head_dim + 1) / 2));
}

WINDLASS_INLINE QueryState query_state(float* states, int head_dim, int query) {
    float* const sum = states + static_cast<std::size_t>(query) * attention_state(head_dim);
    float* const numbers = sum + padded(head_dim);
    return {sum, numbers, numbers + 1, numbers + 2, reinterpret_cast<std::int16_t*>(numbers + kHeadPadding)};
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

// Some queries that see the same keys of a block, begin .. end - 1.
struct QueryGroup {
    const float* q[kSharedQueries];
    QueryState states[kSharedQueries];
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

// Squeezes scores into -softcap .. softcap.
template <int Queries>
void cap_scores(float softcap, F32 (*scores)[kBlockVectors]) {
    for (int query = 0; query < Queries; ++query) {
        for (int v = 0; v < kBlockVectors; ++v) {
            scores[query][v] = hyperbolic_tangent(scores[query][v] / softcap) * softcap;
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
        for (int v = 0; v < kBlockVectors; ++v) seen[v] = keys_between(v, begin, end);
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
