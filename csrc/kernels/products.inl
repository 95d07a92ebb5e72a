// Sums of products of codes and quantized activations. Included once, inside an unnamed namespace.
//
// A lane of four bytes holds the codes of four columns of one row; `activations` points to the same four columns of one
// token. The sums are exact integers, so what an instruction set offers never changes a result. What a sum begins with
// is named at its start and again at its end: each kind takes it where that costs it no register.
//
// With products of matrices (FEAT_I8MM) a vector of sums is of two rows and two tokens, and an octet of columns is
// multiplied at once: the codes [2 rows][8] with the activations [2 tokens][8].

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

// What the lanes of sums are: the rows of a vector, for one token. Of more tokens a vector of sums has as many parts.
struct OneToken {
    static constexpr int kTokens = 1;
    // Quads of columns that are multiplied at once.
    static constexpr int kQuads = 1;
    template <typename Codes>
    using Sums = typename Codes::Sums;

    // Quad q of an octet, and those after it, as part `part` multiplies them.
    static WINDLASS_INLINE U8 codes(const U8* quads, int q, int) { return quads[q]; }
    // Lane by lane the number of its row, of which `rows` has those of all parts, or of its token, from `from` on.
    template <typename Vector>
    static WINDLASS_INLINE Vector of_rows(Vector rows, int) {
        return rows;
    }
    template <typename Number>
    static WINDLASS_INLINE auto of_tokens(const std::uint8_t* from) {
        return splat(load_as<Number>(from));
    }
    // From all parts of one vector after the other to all vectors of one token after the other.
    template <int Vectors>
    static WINDLASS_INLINE void separate(F32*) {}
};

#if !defined(WINDLASS_NO_INTRINSICS) && defined(__ARM_FEATURE_MATMUL_INT8)

constexpr bool kMatrixProducts = true;

struct MatrixProducts {
    WINDLASS_INLINE void start(I32 value) { sum = value; }
    WINDLASS_INLINE void add(U8 codes, const std::uint8_t* activations) {
        sum = vmmlaq_s32(sum, load_as<int8x16_t>(activations), (int8x16_t)codes);
    }
    WINDLASS_INLINE I32 total(I32) const { return sum; }
    I32 sum;
};

// Two rows for the first token, then for the second.
struct TwoTokens {
    static constexpr int kTokens = 2;
    static constexpr int kQuads = 2;
    template <typename Codes>
    using Sums = PlaneProducts<MatrixProducts, Codes::kPlanes>;

    static WINDLASS_INLINE U8 codes(const U8* quads, int, int part) {
        const int32x4_t first = (int32x4_t)quads[0], second = (int32x4_t)quads[1];
        return (U8)(part == 0 ? vzip1q_s32(first, second) : vzip2q_s32(first, second));
    }
    template <typename Vector>
    static WINDLASS_INLINE Vector of_rows(Vector rows, int part) {
        return halves(rows, rows, part);
    }
    template <typename Number>
    static WINDLASS_INLINE auto of_tokens(const std::uint8_t* from) {
        const int32x4_t both = vcombine_s32(load_as<int32x2_t>(from), int32x2_t{});
        return (decltype(splat(Number{})))vzip1q_s32(both, both);
    }
    template <int Vectors>
    static WINDLASS_INLINE void separate(F32* sums) {
        F32 rows[2 * Vectors];
        for (int i = 0; i < 2 * Vectors; ++i) {
            const F32* const parts = sums + i % Vectors * 2;
            rows[i] = halves(parts[0], parts[1], i / Vectors);
        }
        __builtin_memcpy(sums, rows, sizeof rows);
    }

  private:
    // The lower or the upper half of each.
    template <typename Vector>
    static WINDLASS_INLINE Vector halves(Vector a, Vector b, int half) {
        const int64x2_t x = (int64x2_t)a, y = (int64x2_t)b;
        return (Vector)(half == 0 ? vzip1q_s64(x, y) : vzip2q_s64(x, y));
    }
};

template <int Tokens>
struct SumLanes : TwoTokens {};
template <>
struct SumLanes<1> : OneToken {};

#else

constexpr bool kMatrixProducts = false;

template <int Tokens>
using SumLanes = OneToken;

#endif
