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

// Multiplies by the weight, if there is one, and adds the bias, if there is one. `out` may be `x`.
template <typename Normalize>
WINDLASS_INLINE void normalize_row(const float* x, const float* weight, const float* bias, std::int64_t width,
                                   float* out, const Normalize& normalize) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        F32 value = normalize(load_some(x + i, count));
        if (weight != nullptr) value = value * load_some(weight + i, count);
        if (bias != nullptr) value = value + load_some(bias + i, count);
        store_some(out + i, value, count);
    });
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
    F32 squares = {};
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        const F32 value = load_some(x + i, count);
        squares = multiply_add(value, value, squares);
    });
    const float mean = sum_lanes(squares) / static_cast<float>(width);
    const F32 factor = splat(1.0F / __builtin_sqrtf(mean + eps));
    normalize_row(x, weight, nullptr, width, out, [&](F32 value) { return value * factor; });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t width, float* out) {
    F32 sums = {};
    for_vectors(width, [&](std::int64_t i, std::int64_t count) { sums += load_some(x + i, count); });
    const float mean = sum_lanes(sums) / static_cast<float>(width);
    F32 squares = {};
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        // The lanes behind the end of the row are no part of it.
        const F32 value = load_some(x + i, count) - mean;
        const F32 square = value * value;
        squares += count == kLanes ? square : first_lanes(square, count);
    });
    const float variance = sum_lanes(squares) / static_cast<float>(width);
    const F32 factor = splat(1.0F / __builtin_sqrtf(variance + eps));
    normalize_row(x, weight, bias, width, out, [&](F32 value) { return (value - mean) * factor; });
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

WINDLASS_INLINE F32 sigmoid(F32 x) {
    const I32 negative = x < 0.0F;
    const F32 small = exponential(select(negative, x, -x));
    return select(negative, small, splat(1.0F)) / (small + 1.0F);
}

// About 2e-7 relative. Near 0 a polynomial (Cephes, tanhf), elsewhere (1 - e^-2|x|) / (1 + e^-2|x|).
WINDLASS_INLINE F32 hyperbolic_tangent(F32 x) {
    const F32 square = x * x;
    F32 y = splat(-5.70498872745e-3F);
    y = multiply_add(y, square, splat(2.06390887954e-2F));
    y = multiply_add(y, square, splat(-5.37397155531e-2F));
    y = multiply_add(y, square, splat(1.33314422036e-1F));
    y = multiply_add(y, square, splat(-3.33332819422e-1F));
    const F32 near = multiply_add(y * square, x, x);
    const I32 negative = x < 0.0F;
    const F32 magnitude = select(negative, -x, x);
    const F32 small = exponential(magnitude * -2.0F);
    const F32 far = (1.0F - small) / (small + 1.0F);
    return select(magnitude < 0.625F, near, select(negative, -far, far));
}

// x * Phi(x), about 5e-7 relative. Phi(-|x|) is e^(-x^2 / 2) times a polynomial in t = 1 / (1 + 3/8 |x|), times t:
// fitted to 1e-7 for |x| <= 16, beyond which it makes no difference.
WINDLASS_INLINE F32 gelu(F32 x) {
    const I32 negative = x < 0.0F;
    F32 magnitude = select(negative, -x, x);
    magnitude = select(magnitude > 16.0F, splat(16.0F), magnitude);
    const F32 t = 1.0F / multiply_add(magnitude, splat(0.375F), splat(1.0F));
    F32 y = splat(1.9873440266e-2F);
    y = multiply_add(y, t, splat(-1.2865789235e-1F));
    y = multiply_add(y, t, splat(3.3286145329e-1F));
    y = multiply_add(y, t, splat(-4.0890192986e-1F));
    y = multiply_add(y, t, splat(2.0377981663e-1F));
    y = multiply_add(y, t, splat(-5.0286840647e-2F));
    y = multiply_add(y, t, splat(1.0624770820e-1F));
    y = multiply_add(y, t, splat(1.2564414740e-1F));
    y = multiply_add(y, t, splat(1.4984528720e-1F));
    y = multiply_add(y, t, splat(1.4959481359e-1F));
    // What the square loses when it is rounded would be multiplied by it.
    const F32 square = magnitude * magnitude, lost = multiply_add(magnitude, magnitude, -square);
    const F32 tail = exponential(square * -0.5F) * (1.0F - lost * 0.5F) * (y * t);
    return select(negative, x * tail, x - x * tail);
}

// x * Phi(x) with tanh for the error function: (1 + tanh(y)) / 2 is sigmoid(2 y).
WINDLASS_INLINE F32 gelu_tanh(F32 x) {
    const F32 cube = x * x * x;
    return x * sigmoid((x + cube * 0.044715F) * 1.5957691216F);
}

template <typename Function>
WINDLASS_INLINE void map_row(const float* x, std::int64_t width, float* out, const Function& function) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(out + i, function(load_some(x + i, count)), count);
    });
}

// The activation of the first half times the second half (Shazeer, 2020).
template <typename Function>
WINDLASS_INLINE void map_gated(const float* x, std::int64_t width, float* out, const Function& function) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(out + i, function(load_some(x + i, count), load_some(x + width + i, count)), count);
    });
}

void activation(ActivationKind kind, const float* x, std::int64_t width, float* out) {
    switch (kind) {
        case ActivationKind::kSilu:
            return map_row(x, width, out, [](F32 value) { return value * sigmoid(value); });
        case ActivationKind::kGelu:
            return map_row(x, width, out, [](F32 value) { return gelu(value); });
        case ActivationKind::kGeluTanh:
            return map_row(x, width, out, [](F32 value) { return gelu_tanh(value); });
        default:  // kRelu: the plan lets nothing else come here
            return map_row(x, width, out, [](F32 value) { return select(value < 0.0F, F32{}, value); });
    }
}

void gated_activation(ActivationKind kind, const float* x, std::int64_t width, float* out) {
    switch (kind) {
        case ActivationKind::kSilu:
            return map_gated(x, width, out, [](F32 gate, F32 up) { return gate * sigmoid(gate) * up; });
        case ActivationKind::kGelu:
            return map_gated(x, width, out, [](F32 gate, F32 up) { return gelu(gate) * up; });
        case ActivationKind::kGeluTanh:
            return map_gated(x, width, out, [](F32 gate, F32 up) { return gelu_tanh(gate) * up; });
        default:  // kClampedSwiglu
            return map_gated(x, width, out, [](F32 gate, F32 up) {
                const F32 most = splat(7.0F);
                gate = select(gate > most, most, gate);
                up = select(up > most, most, select(up < -most, -most, up));
                return gate * sigmoid(gate * 1.702F) * (up + 1.0F);
            });
    }
}

void add_scaled(float* x, const float* y, float factor, std::int64_t width) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(x + i, multiply_add(load_some(y + i, count), splat(factor), load_some(x + i, count)), count);
    });
}

void scale(float* x, float factor, std::int64_t width) {
    map_row(x, width, x, [&](F32 value) { return value * factor; });
}

void sigmoid_gate(float* x, float gate, std::int64_t width) { scale(x, sigmoid(splat(gate))[0], width); }

void softcap(float* x, float cap, std::int64_t width) {
    map_row(x, width, x, [&](F32 value) { return hyperbolic_tangent(value / cap) * cap; });
}

void add(float* x, const float* y, std::int64_t width) {
    for_vectors(width, [&](std::int64_t i, std::int64_t count) {
        store_some(x + i, load_some(x + i, count) + load_some(y + i, count), count);
    });
}
