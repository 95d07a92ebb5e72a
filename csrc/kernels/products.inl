// Sums of products of codes and quantized activations. Included once, inside an unnamed namespace.
//
// A lane of four bytes holds the codes of four columns of one row; `activations` points to the same four columns of one
// token. The sums are exact integers, so what an instruction set offers never changes a result. What a sum begins with
// is named at its start and again at its end: each kind takes it where that costs it no register.

// Activations of 15 bits come in two planes, each with four bytes for four columns. If they are paired, one plane has
// those of columns 0 and 2, of 16 bits each, and one those of columns 1 and 3. Else they are 2^kLowBits * high + low,
// and one plane has the low parts, one the high ones.
constexpr int kLowBits = 7;
constexpr int kLargestActivation = 127 << kLowBits;

#if !defined(WINDLASS_NO_INTRINSICS) && (defined(__AVX512VNNI__) || defined(__AVXVNNI__))
// Codes are unsigned to the instruction: signed ones come with 128 added, which corrections take off again.
constexpr int kSignedBias = 128;
#else
constexpr int kSignedBias = 0;
#endif

WINDLASS_INLINE std::int32_t load_four(const std::uint8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return four;
}

// Bytes 0 and 2, or 1 and 3, of every lane, as signed numbers.
WINDLASS_INLINE I16 even_bytes(I32 four) { return ((I16)four << 8) >> 8; }
WINDLASS_INLINE I16 odd_bytes(I32 four) { return (I16)four >> 8; }

// The sums of neighbouring products. Without the instruction each product must fit sixteen bits.
WINDLASS_INLINE I32 multiply_pairs(I16 a, I16 b) {
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512BW__)
    return (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
    return (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const I32 products = (I32)(a * b);
    return ((products << 16) >> 16) + (products >> 16);
#endif
}

// Products with the bytes of so many planes.
template <typename Products, int kPlanes>
struct PlaneProducts {
    WINDLASS_INLINE void start(I32 first) {
        planes[0].start(first);
        if constexpr (kPlanes == 2) planes[1].start(I32{});
    }
    WINDLASS_INLINE void add(U8 codes, int plane, const std::uint8_t* activations) {
        planes[plane].add(codes, activations);
    }
    WINDLASS_INLINE I32 total(I32 first) const {
        if constexpr (kPlanes == 2) return planes[0].total(first) + (planes[1].total(I32{}) << kLowBits);
        return planes[0].total(first);
    }
    Products planes[kPlanes];
};

#if !defined(WINDLASS_NO_INTRINSICS) && \
    (defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD))

constexpr bool kPairedActivations = false;

struct Products {
    WINDLASS_INLINE void start(I32 first) { sum = first; }
    WINDLASS_INLINE void add(U8 codes, const std::uint8_t* activations) {
#if defined(__AVX512VNNI__)
        sum = (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(load_four(activations)));
#elif defined(__AVXVNNI__)
        sum = (I32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, _mm256_set1_epi32(load_four(activations)));
#else
        sum = vdotq_s32(sum, (int8x16_t)codes, (int8x16_t)vdupq_n_s32(load_four(activations)));
#endif
    }
    WINDLASS_INLINE I32 total(I32) const { return sum; }
    I32 sum;
};
using SmallProducts = PlaneProducts<Products, 1>;
using MediumProducts = PlaneProducts<Products, 2>;
using LargeProducts = PlaneProducts<Products, 2>;

#else

// Codes 0 .. 15. Sixteen bits hold the sums of one run: 16 * 15 * 127 = 30480.
struct NibbleProducts {
    WINDLASS_INLINE void start(I32) { sums = I16{}; }
    WINDLASS_INLINE void add(U8 codes, const std::uint8_t* activations) {
        const I32 four = splat(load_four(activations));
#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX512BW__)
        sums += (I16)_mm512_maddubs_epi16((__m512i)codes, (__m512i)four);
#elif !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)
        sums += (I16)_mm256_maddubs_epi16((__m256i)codes, (__m256i)four);
#else
        sums += even_bytes((I32)codes) * even_bytes(four) + odd_bytes((I32)codes) * odd_bytes(four);
#endif
        settle(sums);
    }
    WINDLASS_INLINE I32 total(I32 first) const { return first + multiply_pairs(sums, I16{} + 1); }
    I16 sums;
};
static_assert(kRunColumns / 2 * 15 * 127 <= 32767);
using SmallProducts = PlaneProducts<NibbleProducts, 1>;

#if !defined(WINDLASS_NO_INTRINSICS) && defined(__AVX2__)

constexpr bool kPairedActivations = true;

template <bool kSigned>
struct PairProducts {
    WINDLASS_INLINE void start(I32 first) { sum = first; }
    WINDLASS_INLINE void add(U8 codes, int plane, const std::uint8_t* activations) {
        const I16 even = kSigned ? even_bytes((I32)codes) : (I16)codes & 0xFF;
        const I16 weights = plane == 0 ? even : odd_bytes((I32)codes);
        sum += multiply_pairs(weights, (I16)splat(load_four(activations)));
        settle(sum);
    }
    WINDLASS_INLINE I32 total(I32) const { return sum; }
    I32 sum;
};
static_assert(std::int64_t{kRunColumns} * 128 * kLargestActivation <= 0x7FFFFFFF);
using MediumProducts = PairProducts<false>;
using LargeProducts = PairProducts<true>;

#else

constexpr bool kPairedActivations = false;

struct SignedProducts {
    WINDLASS_INLINE void start(I32 first) { sum = first; }
    WINDLASS_INLINE void add(U8 codes, const std::uint8_t* activations) {
        const I32 four = splat(load_four(activations));
        sum += multiply_pairs(even_bytes((I32)codes), even_bytes(four)) +
               multiply_pairs(odd_bytes((I32)codes), odd_bytes(four));
    }
    WINDLASS_INLINE I32 total(I32) const { return sum; }
    I32 sum;
};
using MediumProducts = PlaneProducts<SignedProducts, 2>;
using LargeProducts = PlaneProducts<SignedProducts, 2>;

#endif

#endif
