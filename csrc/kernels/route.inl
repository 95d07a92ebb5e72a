// The choice of experts. Included once, inside an unnamed namespace.

void softmax(const float* x, std::int64_t width, float* out) {
    float largest = x[0];
    for (std::int64_t i = 1; i < width; ++i) largest = x[i] > largest ? x[i] : largest;
    float sum = 0.0F;
    map_row(x, width, out, [&](F32 value) { return exponential(value - largest); });
    for (std::int64_t i = 0; i < width; ++i) sum += out[i];
    map_row(out, width, out, [&](F32 value) { return value / sum; });
}

// The numbers of the `count` largest values, the largest first; of equal ones the lower number. A NaN counts as large,
// so that it is seen in the result.
void find_largest(const float* values, int size, int count, std::int32_t* found) {
    int length = 0;
    for (int i = 0; i < size; ++i) {
        int place = length;
        while (place > 0 && !(values[found[place - 1]] >= values[i])) --place;
        if (place == count) continue;
        length = length < count ? length + 1 : count;
        for (int j = length - 1; j > place; --j) found[j] = found[j - 1];
        found[place] = i;
    }
}

// Takes the experts of all but the best groups out of the choice. `work` has room for 2 * groups numbers.
void close_groups(const RouteJob& job, float* choice, float* work) {
    const int size = job.experts / job.groups;
    for (int group = 0; group < job.groups; ++group) {
        std::int32_t best[2];
        const float* const values = choice + group * size;
        find_largest(values, size, job.top2_sum ? 2 : 1, best);
        work[group] = job.top2_sum ? values[best[0]] + values[best[1]] : values[best[0]];
    }
    std::int32_t* const open = reinterpret_cast<std::int32_t*>(work + job.groups);
    find_largest(work, job.groups, job.top_groups, open);
    for (int group = 0; group < job.groups; ++group) {
        bool is_open = false;
        for (int i = 0; i < job.top_groups; ++i) is_open = is_open || open[i] == group;
        for (int i = 0; !is_open && i < size; ++i) choice[group * size + i] = -__builtin_inff();
    }
}

void route(const RouteJob& job) {
    float* const scores = job.scratch;
    float* const choice = scores + job.experts;
    float* const work = choice + job.experts;
    if (job.sigmoid) {
        map_row(job.x, job.experts, scores, [](F32 value) { return sigmoid(value); });
    } else {
        softmax(job.x, job.experts, scores);
    }
    __builtin_memcpy(choice, scores, static_cast<std::size_t>(job.experts) * sizeof(float));
    if (job.bias != nullptr) add(choice, job.bias, job.experts);
    if (job.groups > 1) close_groups(job, choice, work);
    std::int32_t* const chosen = reinterpret_cast<std::int32_t*>(work);
    find_largest(choice, job.experts, job.top_k, chosen);
    float sum = 1.0F;
    if (job.normalize) {
        sum = 0.0F;
        for (int i = 0; i < job.top_k; ++i) sum += scores[chosen[i]];
    }
    __builtin_memset(job.out, 0, static_cast<std::size_t>(job.experts) * sizeof(float));
    for (int i = 0; i < job.top_k; ++i) job.out[chosen[i]] = scores[chosen[i]] / sum * job.scale;
}
