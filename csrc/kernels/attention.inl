// Attention over a paged KV cache. Included once, inside an unnamed namespace.
//
// A page part (one layer, one KV head) holds keys as [head_dim][kPageSize], so that lanes run over keys, then values as
// [kPageSize][padded head_dim], so that lanes run over the head. A query walks its pages in order with an online
// softmax (Milakov and Gimelshein, 2018), one page per step counted from position 0: the result does not depend on what
// else is in the job.

constexpr int kKeyVectors = kPageSize / kLanes;
// Partial sums of one score: enough to hide the latency of a fused multiply-add.
constexpr int kScoreParts = kLanes / 4;

WINDLASS_INLINE int padded(int head_dim) { return (head_dim + kHeadPadding - 1) / kHeadPadding * kHeadPadding; }

// Scratch: keys and values of a page as floats, then per query its output sum, maximum and sum of exponentials.
std::size_t attention_scratch(int heads, int head_dim) {
    const std::size_t width = static_cast<std::size_t>(padded(head_dim));
    return 2 * width * kPageSize + static_cast<std::size_t>(kQueryTokens * heads) * (width + kHeadPadding);
}

void store_kv(const StoreKVJob& job) {
    const int width = padded(job.head_dim);
    const std::int64_t values = static_cast<std::int64_t>(job.head_dim) * kPageSize + job.slot * width;
    if (job.kv_type == KVType::kF32) {
        float* to = reinterpret_cast<float*>(job.block);
        for (int d = 0; d < job.head_dim; ++d) to[d * kPageSize + job.slot] = job.k[d];
        for (int d = 0; d < job.head_dim; ++d) to[values + d] = job.v[d];
        return;
    }
    std::uint16_t* to = reinterpret_cast<std::uint16_t*>(job.block);
    const bool half = job.kv_type == KVType::kF16;
    for (int d = 0; d < job.head_dim; ++d) to[d * kPageSize + job.slot] = half ? to_f16(job.k[d]) : to_bf16(job.k[d]);
    for (int d = 0; d < job.head_dim; ++d) to[values + d] = half ? to_f16(job.v[d]) : to_bf16(job.v[d]);
}

// The keys and values of a page part as floats: in place if they are, else converted into `scratch`.
const float* page_floats(const std::uint8_t* block, KVType type, std::int64_t count, float* scratch) {
    if (type == KVType::kF32) return reinterpret_cast<const float*>(block);
    const std::uint16_t* from = reinterpret_cast<const std::uint16_t*>(block);
    if (type == KVType::kF16) {
        for (std::int64_t i = 0; i < count; i += kLanes) store(scratch + i, load_f16(from + i));
    } else {
        for (std::int64_t i = 0; i < count; i += kLanes) store(scratch + i, load_bf16(from + i));
    }
    return scratch;
}

struct Query {
    const float* q;
    float* sum;  // [padded head_dim]
    float* maximum;
    float* exponentials;
};

// Scores of one query against the sixteen keys of a page.
WINDLASS_INLINE void page_scores(const float* q, const float* keys, int head_dim, float scale,
                                 F32 (&scores)[kKeyVectors]) {
    F32 parts[kScoreParts][kKeyVectors] = {};
    int d = 0;
    for (; d + kScoreParts <= head_dim; d += kScoreParts) {
#pragma GCC unroll 4
        for (int part = 0; part < kScoreParts; ++part) {
            const F32 value = splat(q[d + part]);
#pragma GCC unroll 4
            for (int v = 0; v < kKeyVectors; ++v) {
                parts[part][v] = multiply_add(load(keys + (d + part) * kPageSize + v * kLanes), value, parts[part][v]);
            }
        }
    }
    for (; d < head_dim; ++d) {
        const F32 value = splat(q[d]);
        for (int v = 0; v < kKeyVectors; ++v) {
            parts[0][v] = multiply_add(load(keys + d * kPageSize + v * kLanes), value, parts[0][v]);
        }
    }
    for (int v = 0; v < kKeyVectors; ++v) {
        for (int part = 1; part < kScoreParts; ++part) parts[0][v] += parts[part][v];
        scores[v] = parts[0][v] * scale;
    }
}

// Adds keys begin .. end - 1 of a page to one query's running softmax. Other slots may hold anything, NaN included.
void attend_page(const Query& query, const float* keys, const float* values, int head_dim, float scale, int begin,
                 int end) {
    const float lowest = -__builtin_inff();
    F32 scores[kKeyVectors];
    page_scores(query.q, keys, head_dim, scale, scores);

    I32 lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    I32 seen[kKeyVectors];
    F32 highest = splat(lowest);
    for (int v = 0; v < kKeyVectors; ++v) {
        const I32 key = lane + v * kLanes;
        seen[v] = (key >= begin) & (key < end);
        highest = maximum(highest, select(seen[v], scores[v], splat(lowest)));
    }
    const float page_maximum = max_lanes(highest);
    const float old_maximum = *query.maximum;
    const float new_maximum = page_maximum > old_maximum ? page_maximum : old_maximum;
    *query.maximum = new_maximum;

    float weights[kPageSize];
    F32 total = {};
    for (int v = 0; v < kKeyVectors; ++v) {
        const F32 weight = select(seen[v], exponential(scores[v] - new_maximum), F32{});
        store(weights + v * kLanes, weight);
        total += weight;
    }
    const F32 correction = exponential(splat(old_maximum - new_maximum));
    *query.exponentials = *query.exponentials * correction[0] + sum_lanes(total);

    const int width = padded(head_dim);
    int d = 0;
    for (; d + 4 * kLanes <= width; d += 4 * kLanes) {
        F32 sums[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[v] = load(query.sum + d + v * kLanes) * correction;
        for (int key = begin; key < end; ++key) {
            const F32 weight = splat(weights[key]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                sums[v] = multiply_add(weight, load(values + key * width + d + v * kLanes), sums[v]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) store(query.sum + d + v * kLanes, sums[v]);
    }
    for (; d < width; d += kLanes) {
        F32 sum = load(query.sum + d) * correction;
        for (int key = begin; key < end; ++key) {
            sum = multiply_add(splat(weights[key]), load(values + key * width + d), sum);
        }
        store(query.sum + d, sum);
    }
}

void attention(const AttentionJob& job) {
    const int width = padded(job.head_dim);
    const int queries = job.tokens * job.heads;
    const std::int64_t page_floats_count = static_cast<std::int64_t>(job.head_dim + width) * kPageSize;
    float* converted = job.scratch;
    float* sums = converted + 2 * static_cast<std::int64_t>(width) * kPageSize;
    float* maxima = sums + static_cast<std::int64_t>(kQueryTokens * job.heads) * width;
    float* exponentials = maxima + static_cast<std::int64_t>(kQueryTokens) * job.heads;
    if (job.first) {
        __builtin_memset(sums, 0, static_cast<std::size_t>(queries) * width * sizeof(float));
        for (int i = 0; i < queries; ++i) maxima[i] = -__builtin_inff();
        for (int i = 0; i < queries; ++i) exponentials[i] = 0.0F;
    }
    for (std::int64_t page = job.page_begin; page < job.page_end; ++page) {
        const std::uint8_t* block = job.cache + job.page_ids[page] * job.page_bytes;
        const float* keys = page_floats(block, job.kv_type, page_floats_count, converted);
        const float* values = keys + static_cast<std::int64_t>(job.head_dim) * kPageSize;
        for (int token = 0; token < job.tokens; ++token) {
            const std::int64_t position = job.position + token;
            const std::int64_t oldest = job.window > 0 && position >= job.window ? position - job.window + 1 : 0;
            const std::int64_t begin = oldest - page * kPageSize;
            const std::int64_t end = position + 1 - page * kPageSize;
            if (begin >= kPageSize || end <= 0) continue;
            for (int head = 0; head < job.heads; ++head) {
                const int i = token * job.heads + head;
                const Query query = {job.q + token * job.q_stride + static_cast<std::int64_t>(head) * job.head_dim,
                                     sums + static_cast<std::int64_t>(i) * width, maxima + i, exponentials + i};
                attend_page(query, keys, values, job.head_dim, job.scale, begin > 0 ? static_cast<int>(begin) : 0,
                            end < kPageSize ? static_cast<int>(end) : kPageSize);
            }
        }
    }
    if (!job.last) return;
    for (int token = 0; token < job.tokens; ++token) {
        for (int head = 0; head < job.heads; ++head) {
            const int i = token * job.heads + head;
            const F32 factor = splat(1.0F / exponentials[i]);
            float* out = job.out + token * job.out_stride + static_cast<std::int64_t>(head) * job.head_dim;
            const float* sum = sums + static_cast<std::int64_t>(i) * width;
            for_vectors(job.head_dim, [&](std::int64_t d, std::int64_t count) {
                store_some(out + d, load(sum + d) * factor, count);
            });
        }
    }
}
