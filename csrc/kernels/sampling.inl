// Passes over a row of logits. Included once, inside an unnamed namespace.

// Half a vector of floats, and as many doubles.
constexpr int kHalfLanes = kLanes / 2;
typedef float HalfF32 __attribute__((vector_size(kHalfLanes * 4)));
typedef double F64 __attribute__((vector_size(kHalfLanes * 8)));
typedef std::uint64_t U64 __attribute__((vector_size(kHalfLanes * 8)));

WINDLASS_INLINE F64 multiply_add(F64 a, F64 b, F64 c) {
#if defined(WINDLASS_NO_INTRINSICS)
    return a * b + c;
#elif defined(__AVX512F__)
    return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON)
    return (F64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

// e^x for x <= 0, about 3e-16 relative; 0 below -708, where the result would soon not be a normal number, for
// minus infinity too; exactly 1 for 0. Range reduction to |r| <= ln(2) / 2 and the Taylor polynomial of degree 13.
WINDLASS_INLINE F64 exponential(F64 x) {
    const F64 rounder = 0x1.8p52 - F64{};
    const F64 shifted = multiply_add(x, 0x1.71547652b82fep0 - F64{}, rounder);
    const F64 n = shifted - rounder;
    F64 r = multiply_add(n, -0x1.62e42feep-1 - F64{}, x);
    r = multiply_add(n, -0x1.a39ef35793c76p-33 - F64{}, r);
    F64 y = 1.0 / 6227020800.0 - F64{};
    y = multiply_add(y, r, 1.0 / 479001600.0 - F64{});
    y = multiply_add(y, r, 1.0 / 39916800.0 - F64{});
    y = multiply_add(y, r, 1.0 / 3628800.0 - F64{});
    y = multiply_add(y, r, 1.0 / 362880.0 - F64{});
    y = multiply_add(y, r, 1.0 / 40320.0 - F64{});
    y = multiply_add(y, r, 1.0 / 5040.0 - F64{});
    y = multiply_add(y, r, 1.0 / 720.0 - F64{});
    y = multiply_add(y, r, 1.0 / 120.0 - F64{});
    y = multiply_add(y, r, 1.0 / 24.0 - F64{});
    y = multiply_add(y, r, 1.0 / 6.0 - F64{});
    y = multiply_add(y, r, 0.5 - F64{});
    y = multiply_add(y, r * r, r) + 1.0;
    // The low bits of `shifted` are n: add it to the exponent.
    const U64 scaled = (U64)y + ((U64)shifted << 52);
    return (F64)(scaled & ~(U64)(x < -708.0));
}

// Sums over lanes, always in the same order.
WINDLASS_INLINE double sum_lanes(F64 v) {
    double lanes[kHalfLanes];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (int half = kHalfLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

bool block_maxima(const float* x, std::int64_t count, float* maxima) {
    I32 broken = {};
    for (std::int64_t begin = 0; begin < count; begin += kSamplingBlock) {
        const float* block = x + begin;
        float last[kSamplingBlock];
        if (count - begin < kSamplingBlock) {
            for (float& value : last) value = -__builtin_inff();
            __builtin_memcpy(last, block, static_cast<std::size_t>(count - begin) * sizeof(float));
            block = last;
        }
        F32 largest = load(block);
        broken |= largest != largest;
        for (int i = kLanes; i < kSamplingBlock; i += kLanes) {
            const F32 value = load(block + i);
            broken |= value != value;
            largest = value > largest ? value : largest;
        }
        *maxima++ = max_lanes(largest);
    }
    for (int i = 0; i < kLanes; ++i) {
        if (broken[i] != 0) return false;
    }
    return true;
}

double likelihoods(const float* x, std::int64_t count, float largest, double inverse_temperature, double* out) {
    const auto weights = [&](const HalfF32& values) {
        return exponential(__builtin_convertvector(values - largest, F64) * inverse_temperature);
    };
    F64 sum = {};
    std::int64_t i = 0;
    for (; i + kHalfLanes <= count; i += kHalfLanes) {
        const F64 some = weights(load_as<HalfF32>(x + i));
        __builtin_memcpy(out + i, &some, sizeof some);
        sum += some;
    }
    if (i < count) {
        HalfF32 rest = -__builtin_inff() - HalfF32{};
        __builtin_memcpy(&rest, x + i, static_cast<std::size_t>(count - i) * sizeof(float));
        const F64 some = weights(rest);
        __builtin_memcpy(out + i, &some, static_cast<std::size_t>(count - i) * sizeof(double));
        sum += some;
    }
    return sum_lanes(sum);
}
