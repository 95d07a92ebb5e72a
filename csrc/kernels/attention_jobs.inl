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
                                  const Attend* functions) {
    const int queries = job.tokens * job.heads;
    bool fetch = true;
    for (int i = 0; i < queries;) {
        const KeyRange range = keys_seen(job, i / job.heads, page);
        QueryGroup group;
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
            group.states[group.count] = query_state(job.states, job.head_dim, i);
            ++group.count;
            ++i;
        }
        if (range.begin >= range.end) continue;
        functions[group.count - 1](job, block, group);
        fetch = false;
    }
}

void attention(const AttentionJob& job) {
    const int queries = job.tokens * job.heads;
    for (int i = 0; i < queries; ++i) {
        const QueryState state = query_state(job.states, job.head_dim, i);
        __builtin_memset(state.sum, 0, static_cast<std::size_t>(padded(job.head_dim)) * sizeof(float));
        *state.maximum = -__builtin_inff();
        *state.exponentials = 0.0F;
        if (job.kv_type != KVType::kInt16) continue;
        const std::int64_t token = i / job.heads, head = i % job.heads;
        quantize_query(job.q + token * job.q_stride + head * job.head_dim, job.head_dim, state);
    }
    const std::int64_t first = job.page_begin / kBlockPages * kBlockPages;
    for (std::int64_t page = first; page < job.page_end; page += kBlockPages) {
        if (job.kv_type == KVType::kInt16) {
            attend_block(job, page, code_block(job, page), kAttendCodes);
        } else {
            attend_block(job, page, load_block(job, page, job.page_end), kAttendFloats);
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

void finish_attention(const float* states, int tokens, int heads, int head_dim, const float* sinks, float* out,
                      std::int64_t out_stride) {
    for (int i = 0; i < tokens * heads; ++i) {
        const QueryState state = query_state(const_cast<float*>(states), head_dim, i);
        float factor = 1.0F / *state.exponentials;
        if (sinks != nullptr) {
            const float sink = sinks[i % heads], maximum = *state.maximum > sink ? *state.maximum : sink;
            const F32 a = exponential(splat(*state.maximum - maximum)), b = exponential(splat(sink - maximum));
            factor = a[0] / (*state.exponentials * a[0] + b[0]);
        }
        float* const row = out + i / heads * out_stride + static_cast<std::int64_t>(i % heads) * head_dim;
        for_vectors(head_dim, [&](std::int64_t d, std::int64_t count) {
            store_some(row + d, load(state.sum + d) * factor, count);
        });
    }
}
