// What the table has of attention. Included once, inside an unnamed namespace.

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
        case KVType::kInt16:
            return store_pairs(job);
    }
}

// Shows the block from `page` on to all queries, a group at a time.
template <typename Block, typename Attend>
WINDLASS_INLINE void attend_block(const AttentionJob& job, std::int64_t page, const Block& block,
                                  const QueryStates& states, const Attend* functions) {
    const int queries = job.tokens * job.heads;
    bool fetch = true;
    for (int i = 0; i < queries;) {
        const KeyRange range = keys_seen(job, i / job.heads, page);
        QueryGroup group;
        group.first = i;
        group.count = 0;
        group.begin = range.begin;
        group.end = range.end;
        group.fetch = fetch;
        while (group.count < kSharedQueries && i < queries) {
            const int token = i / job.heads;
            const KeyRange own = keys_seen(job, token, page);
            if (own.begin != range.begin || own.end != range.end) break;
            group.q[group.count] =
                job.q + token * job.q_stride + static_cast<std::int64_t>(i % job.heads) * job.head_dim;
            ++group.count;
            ++i;
        }
        if (range.begin >= range.end) continue;
        functions[group.count - 1](job, block, group, states);
        fetch = false;
    }
}

void attention(const AttentionJob& job) {
    const int queries = job.tokens * job.heads;
    const QueryStates states(job.states, job.head_dim, queries);
    for (int i = 0; i < queries; ++i) {
        __builtin_memset(states.sum(i), 0, static_cast<std::size_t>(padded(job.head_dim)) * sizeof(float));
        store_part(states.maxima + i * kOwnLanes, splat(-__builtin_inff()), kOwnLanes);
        store_part(states.weights + i * kOwnLanes, F32{}, kOwnLanes);
        if (job.kv_type != KVType::kInt16) continue;
        const std::int64_t token = i / job.heads, head = i % job.heads;
        quantize_query(job.q + token * job.q_stride + head * job.head_dim, job.head_dim, states, i);
    }
    const std::int64_t first = job.page_begin / kBlockPages * kBlockPages;
    for (std::int64_t page = first; page < job.page_end; page += kBlockPages) {
        if (job.kv_type == KVType::kInt16) {
            attend_block(job, page, code_block(job, page), states, kAttendCodes);
        } else {
            attend_block(job, page, load_block(job, page, job.page_end), states, kAttendFloats);
        }
    }
}

void merge_attention(float* states, const float* later, int queries, int head_dim) {
    const QueryStates own(states, head_dim, queries), others(const_cast<float*>(later), head_dim, queries);
    for (int i = 0; i < queries; ++i) {
        const int at = i * kOwnLanes;
        if (others.weights[at] == 0.0F) continue;
        const F32 own_maximum = splat(own.maxima[at]), other_maximum = splat(others.maxima[at]);
        const F32 most = select(own_maximum > other_maximum, own_maximum, other_maximum);
        const F32 a = power_of_two(own_maximum - most), b = power_of_two(other_maximum - most);
        store_part(own.maxima + at, most, kOwnLanes);
        store_part(own.weights + at, own.weights[at] * a + others.weights[at] * b, kOwnLanes);
        for (int d = 0; d < padded(head_dim); d += kLanes) {
            store(own.sum(i) + d, load(own.sum(i) + d) * a + load(others.sum(i) + d) * b);
        }
    }
}

void finish_attention(const float* states, int tokens, int heads, int head_dim, const float* sinks, float* out,
                      std::int64_t out_stride) {
    const QueryStates own(const_cast<float*>(states), head_dim, tokens * heads);
    for (int i = 0; i < tokens * heads; ++i) {
        const float weight = own.weights[i * kOwnLanes], maximum = own.maxima[i * kOwnLanes];
        float factor = 1.0F / weight;
        if (sinks != nullptr) {
            const float sink = sinks[i % heads] * kLog2E, most = maximum > sink ? maximum : sink;
            const F32 a = power_of_two(splat(maximum - most)), b = power_of_two(splat(sink - most));
            factor = a[0] / (weight * a[0] + b[0]);
        }
        float* const row = out + i / heads * out_stride + static_cast<std::int64_t>(i % heads) * head_dim;
        for_vectors(head_dim, [&](std::int64_t d, std::int64_t count) {
            store_some(row + d, load(own.sum(i) + d) * factor, count);
        });
    }
}
