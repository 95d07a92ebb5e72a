// Operations on one row of values. Included once, inside an unnamed namespace.

// Calls body(first, count) for each vector's worth of a row: kLanes elements, at its end perhaps fewer.
template <typename Body>
WINDLASS_INLINE void for_vectors(std::int64_t width, const Body& body) {
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) body(i, static_cast<std::int64_t>(kLanes));
    if (i < width) body(i, width - i);
}

WINDLASS_INLINE F32 load_some(const float* from, std::int64_t count) {
    return count == kLanes ? load(from) : load_part(from, count);
}
WINDLASS_INLINE void store_some(float* to, F32 value, std::int64_t count) {
    if (count == kLanes) {
        store(to, value);
    } else {
        store_part(to, value, count);
    }
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
    F32 squares = {};
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        const F32 value = load_some(x + i, count);
        squares = multiply_add(value, value, squares);
    });
    const float mean = sum_lanes(squares) / static_cast<float>(width);
    const F32 factor = splat(1.0F / __builtin_sqrtf(mean + eps));
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(out + i, load_some(x + i, count) * factor * load_some(weight + i, count), count);
    });
}

void rope(float* x, const float* cos, const float* sin, std::int64_t heads, std::int64_t head_dim, std::int64_t half) {
    for (std::int64_t head = 0; head < heads; ++head, x += head_dim) {
        for_vectors(half, [&](std::int64_t i, std::int64_t count) {
            const F32 a = load_some(x + i, count), b = load_some(x + half + i, count);
            const F32 c = load_some(cos + i, count), s = load_some(sin + i, count);
            store_some(x + i, a * c - b * s, count);
            store_some(x + half + i, b * c + a * s, count);
        });
    }
}

// SwiGLU (Shazeer, 2020): silu of the first half times the second half.
void silu_gate(const float* x, std::int64_t width, float* out) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        const F32 gate = load_some(x + i, count);
        const I32 negative = gate < 0.0F;
        const F32 small = exponential(select(negative, gate, -gate));
        const F32 sigmoid = select(negative, small, splat(1.0F)) / (small + 1.0F);
        store_some(out + i, gate * sigmoid * load_some(x + width + i, count), count);
    });
}

void add(float* x, const float* y, std::int64_t width) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(x + i, load_some(x + i, count) + load_some(y + i, count), count);
    });
}
