// A thin layer over the compilers' vector extensions: the only kernel code that names an instruction set.
// Included once, inside an unnamed namespace.

#define WINDLASS_INLINE inline __attribute__((always_inline))
#define WINDLASS_INLINE_LAMBDA __attribute__((always_inline))

#if defined(WINDLASS_NO_INTRINSICS)
constexpr int kLanes = 4;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Vectors in one panel.
constexpr int kVectors = kPanelRows / kLanes;

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef std::uint8_t U8 __attribute__((vector_size(kLanes * 4)));
typedef std::int16_t I16 __attribute__((vector_size(kLanes * 4)));

WINDLASS_INLINE F32 splat(float value) { return value - F32{}; }
WINDLASS_INLINE I32 splat(std::int32_t value) { return value + I32{}; }

template <typename Vector>
WINDLASS_INLINE Vector load_as(const void* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

WINDLASS_INLINE F32 load(const float* from) { return load_as<F32>(from); }
WINDLASS_INLINE void store(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value); }

// The first `count` lanes from memory, zero in the others.
WINDLASS_INLINE F32 load_part(const float* from, std::int64_t count) {
    F32 vector = {};
    __builtin_memcpy(&vector, from, static_cast<std::size_t>(count) * sizeof(float));
    return vector;
}
WINDLASS_INLINE void store_part(float* to, F32 value, std::int64_t count) {
    __builtin_memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(float));
}

// The first `count` lanes of a vector, zero in the others.
WINDLASS_INLINE F32 first_lanes(F32 vector, std::int64_t count) {
    float lanes[kLanes];
    store(lanes, vector);
    return load_part(lanes, count);
}

// a * b + c, rounded once where the instruction set can, twice where it cannot.
WINDLASS_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(WINDLASS_NO_INTRINSICS)
    return a * b + c;
#elif defined(__AVX512F__)
    return reinterpret_cast<F32>(_mm512_fmadd_ps(a, b, c));
#elif defined(__AVX2__)
    return reinterpret_cast<F32>(_mm256_fmadd_ps(a, b, c));
#elif defined(__ARM_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

WINDLASS_INLINE F32 select(I32 mask, F32 yes, F32 no) { return mask ? yes : no; }
// The second of the two when one is a NaN.
WINDLASS_INLINE F32 maximum(F32 a, F32 b) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512F__)
    return (F32)_mm512_max_ps(a, b);
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    return (F32)_mm256_max_ps(a, b);
#else
    return select(a > b, a, b);
#endif
}

// Has a sum made where the code says so. GCC makes many products before it adds any of them, and keeps them in memory
// when there are more than registers.
template <typename Vector>
WINDLASS_INLINE void settle([[maybe_unused]] Vector& sum) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512F__)
    __asm__("" : "+v"(sum));
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    __asm__("" : "+x"(sum));
#endif
}

// Clang has no __builtin_shuffle, and GCC before 12 has no __builtin_shufflevector.
#if defined(__clang__)
#define WINDLASS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WINDLASS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a > a){__VA_ARGS__})
#endif

// At each lane a lane of `a` or, from kLanes on, of `b`: the one that From::at(lane) names.
#define WINDLASS_FROM(i) From::at(i), From::at(i + 1), From::at(i + 2), From::at(i + 3)
template <typename From, typename Vector>
WINDLASS_INLINE Vector shuffle(Vector a, Vector b) {
    if constexpr (kLanes == 16) {
        return WINDLASS_SHUFFLE(a, b, WINDLASS_FROM(0), WINDLASS_FROM(4), WINDLASS_FROM(8), WINDLASS_FROM(12));
    } else if constexpr (kLanes == 8) {
        return WINDLASS_SHUFFLE(a, b, WINDLASS_FROM(0), WINDLASS_FROM(4));
    } else {
        return WINDLASS_SHUFFLE(a, b, WINDLASS_FROM(0));
    }
}
#undef WINDLASS_FROM

// Lane i + by at lane i, around the end of each `width` lanes.
template <int width, int by>
struct Rotated {
    static constexpr int at(int lane) { return lane / width * width + (lane + by) % width; }
};
template <int by, int width = kLanes, typename Vector>
WINDLASS_INLINE Vector rotate(Vector v) {
    return shuffle<Rotated<width, by>>(v, v);
}

// Combines all lanes, always in the same order.
template <typename Vector, typename Combine>
WINDLASS_INLINE Vector combine_lanes(Vector v, const Combine& combine) {
    if constexpr (kLanes == 16) v = combine(v, rotate<8>(v));
    if constexpr (kLanes >= 8) v = combine(v, rotate<4>(v));
    v = combine(v, rotate<2>(v));
    return combine(v, rotate<1>(v));
}
WINDLASS_INLINE float sum_lanes(F32 v) {
    return combine_lanes(v, [](F32 a, F32 b) { return a + b; })[0];
}
WINDLASS_INLINE std::int32_t sum_lanes(I32 v) {
    return combine_lanes(v, [](I32 a, I32 b) { return a + b; })[0];
}
WINDLASS_INLINE float max_lanes(F32 v) {
    return combine_lanes(v, [](F32 a, F32 b) { return maximum(a, b); })[0];
}
WINDLASS_INLINE std::int32_t max_lanes(I32 v) {
    return combine_lanes(v, [](I32 a, I32 b) { return a > b ? a : b; })[0];
}

// kLanes bytes, signed ones as floats and unsigned ones as integers. Compilers take the conversions apart where the
// instruction set has them in one piece.
WINDLASS_INLINE F32 load_codes(const std::uint8_t* from) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
    return __builtin_convertvector(__builtin_convertvector(load_as<Bytes>(from), I32), F32);
#endif
}
WINDLASS_INLINE I32 load_bytes(const std::uint8_t* from) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512F__)
    return (I32)_mm512_cvtepu8_epi32(load_as<__m128i>(from));
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));
    return __builtin_convertvector(load_as<Bytes>(from), I32);
#endif
}

WINDLASS_INLINE F32 load_bf16(const std::uint16_t* from) {
    return (F32)(__builtin_convertvector(load_as<U16>(from), U32) << 16);
}

// The floats of the bits of float16 numbers.
WINDLASS_INLINE F32 widen_f16(U16 bits) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512F__)
    return _mm512_cvtph_ps((__m256i)bits);
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    return _mm256_cvtph_ps((__m128i)bits);
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__ARM_NEON)
    return vcvt_f32_f16((float16x4_t)bits);
#else
    // Shift exponent and mantissa into place and multiply by 2^112: exact, subnormals included. Infinities and NaNs
    // end up at 2^16 and above and get their exponent back.
    const U32 half = __builtin_convertvector(bits, U32);
    const F32 magnitude = (F32)((half & 0x7FFF) << 13) * 0x1p112f;
    const U32 special = (U32)(magnitude >= 0x1p16f) & 0x7F800000;
    return (F32)((U32)magnitude | special | ((half & 0x8000) << 16));
#endif
}

WINDLASS_INLINE F32 load_f16(const std::uint16_t* from) { return widen_f16(load_as<U16>(from)); }

WINDLASS_INLINE std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7FC0;
    return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

WINDLASS_INLINE std::uint16_t to_f16(float value) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__F16C__)
    return static_cast<std::uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__ARM_NEON)
    const __fp16 half = static_cast<__fp16>(value);
    return load_as<std::uint16_t>(&half);
#else
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = (bits >> 16) & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);
    if (bits >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);
    if (bits < 0x38800000) {
        // Subnormal: adding 0.5 moves the mantissa to where the hardware rounds it.
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5F;
        __builtin_memcpy(&bits, &magnitude, sizeof bits);
        return static_cast<std::uint16_t>(sign | (bits - 0x3F000000));
    }
    return static_cast<std::uint16_t>(sign | ((bits - 0x38000000 + 0xFFF + ((bits >> 13) & 1)) >> 13));
#endif
}

// The lowest bits of the sum of this and a number of less than 2^22 are the number rounded, ties to even.
constexpr float kRounder = 0x1.8p23F;

// e^x for x <= 0, about 1e-7 relative; 0 below -87, where the result would soon not be a normal number; NaN for NaN.
// Range reduction to |r| <= ln(2) / 2 and a polynomial of degree 6 (Cephes, expf).
WINDLASS_INLINE F32 exponential(F32 x) {
    const F32 shifted = multiply_add(x, splat(1.44269504F), splat(kRounder));
    const F32 n = shifted - kRounder;
    F32 r = multiply_add(n, splat(-0.693359375F), x);
    r = multiply_add(n, splat(2.12194440e-4F), r);
    F32 y = splat(1.9875691500e-4F);
    y = multiply_add(y, r, splat(1.3981999507e-3F));
    y = multiply_add(y, r, splat(8.3334519073e-3F));
    y = multiply_add(y, r, splat(4.1665795894e-2F));
    y = multiply_add(y, r, splat(1.6666665459e-1F));
    y = multiply_add(y, r, splat(5.0000001201e-1F));
    y = multiply_add(y, r * r, r) + 1.0F;
    // The low bits of `shifted` are n: add it to the exponent.
    return select(x < -87.0F, F32{}, (F32)((U32)y + ((U32)shifted << 23)));
}

// 2^x for x up to 1, about 2e-7 relative; 0 below -125; NaN for NaN. A polynomial of degree 5 for the part that no
// integer has, fitted to 1e-7.
WINDLASS_INLINE F32 power_of_two(F32 x) {
    const F32 shifted = x + kRounder;
    const F32 r = x - (shifted - kRounder);
    F32 y = splat(1.326472731e-3F);
    y = multiply_add(y, r, splat(9.671512991e-3F));
    y = multiply_add(y, r, splat(5.550733581e-2F));
    y = multiply_add(y, r, splat(2.402224243e-1F));
    y = multiply_add(y, r, splat(6.931470037e-1F));
    y = multiply_add(y, r, splat(1.0F));
    return select(x < -125.0F, F32{}, (F32)((U32)y + ((U32)shifted << 23)));
}
