// Quantization of activations into tiles. Included once, inside an unnamed namespace.

// Magnitudes below this count as zero: their reciprocals would not be finite.
constexpr float kSmallestMagnitude = 0x1p-100F;

// The bits of infinity; those of NaNs without their sign are above.
constexpr std::int32_t kInfiniteBits = 0x7F800000;

// Rounds to the nearest integer, ties to even, for |x| < 2^22.
WINDLASS_INLINE I32 round_to_integer(F32 x) { return (I32)(x + kRounder) - (I32)splat(kRounder); }

// The largest magnitude of `count` values as the bits of a float: anything not finite is above all finite values.
std::int32_t largest_magnitude(const float* x, std::int64_t count) {
    I32 largest = {};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const I32 bits = load_as<I32>(x + i) & 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    std::int32_t result = max_lanes(largest);
    for (; i < count; ++i) {
        const std::int32_t bits = load_as<std::int32_t>(x + i) & 0x7FFFFFFF;
        result = result > bits ? result : bits;
    }
    return result;
}

// The magnitude that codes of some values are scaled by: NaN when one is not finite, 0 when all count as zero.
float code_magnitude(const float* x, std::int64_t count) {
    const std::int32_t bits = largest_magnitude(x, count);
    const float magnitude = load_as<float>(&bits);
    return bits >= kInfiniteBits ? __builtin_nanf("") : magnitude >= kSmallestMagnitude ? magnitude : 0.0F;
}

// One token's run: its kTileColumns bytes into every `step` bytes of `to`, plane after plane; returns the codes' sum.
template <int kPlanes>
WINDLASS_INLINE std::int32_t quantize_run(const float* x, std::int64_t columns, float inverse, std::uint8_t* to,
                                          std::int64_t step) {
    constexpr bool kPaired = kPlanes == 2 && kPairedActivations;
    // From what a plane has of a column to what it has of the next, and to what the next plane has.
    constexpr std::int64_t kColumnStep = kPaired ? 4 : 1, kPlaneStep = kPaired ? 4 : kRunColumns;
    typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
    std::uint8_t planes[kRunColumns * (kPaired ? 4 : kPlanes)] = {};
    I32 sums = {};
    const auto add = [&](F32 values, std::int64_t c) WINDLASS_INLINE_LAMBDA {
        const I32 codes = round_to_integer(values * inverse);
        sums += codes;
        if constexpr (kPaired) {
            // Two of each four pairs are of use.
            const I32 pairs = (codes & 0xFFFF) | rotate<2>(codes) << 16;
            __builtin_memcpy(planes + c * kColumnStep, &pairs, sizeof pairs);
            return;
        }
        I32 low = codes;
        if constexpr (kPlanes == 2) {
            const I32 high = (codes + (1 << (kLowBits - 1))) >> kLowBits;
            const Bytes bytes = __builtin_convertvector(high, Bytes);
            __builtin_memcpy(planes + kPlaneStep + c, &bytes, sizeof bytes);
            low -= high << kLowBits;
        }
        const Bytes bytes = __builtin_convertvector(low, Bytes);
        __builtin_memcpy(planes + c, &bytes, sizeof bytes);
    };
    if (columns == kRunColumns) {
#pragma GCC unroll 8
        for (std::int64_t c = 0; c < kRunColumns; c += kLanes) add(load(x + c), c);
    } else {
        for (std::int64_t c = 0; c < columns; c += kLanes) {
            const std::int64_t count = smaller(kLanes, columns - c);
            add(count == kLanes ? load(x + c) : load_part(x + c, count), c);
        }
    }
    const std::int64_t padded_columns = octets_of(columns) * kOctet;
    for (std::int64_t c = 0; c < padded_columns; c += kTileColumns) {
        for (int plane = 0; plane < kPlanes; ++plane, to += step) {
            __builtin_memcpy(to, planes + c * kColumnStep + plane * kPlaneStep, kTileColumns);
        }
    }
    return sum_lanes(sums);
}

template <int kPlanes>
void quantize_with(const QuantizeJob& job, float largest_code, std::int32_t factor) {
    const PackedMatrix& matrix = *job.matrix;
    const std::int64_t step = job.tokens * 4, own = job.token * 4, codes_step = job.tokens * kTileColumns;
    const std::int64_t block_columns = matrix.group * matrix.block_records;
    std::uint8_t* to = job.tile;
    float ordered[kActivationColumns];
    for (std::int64_t begin = 0; begin < matrix.columns; begin += block_columns) {
        const std::int64_t end = smaller(begin + block_columns, matrix.columns);
        const float* x = job.x + begin;
        if (matrix.order != nullptr) {
            for (std::int64_t c = begin; c < end; ++c) ordered[c - begin] = job.x[matrix.order[c]];
            x = ordered;
        }
        const float magnitude = code_magnitude(x, end - begin);
        const float scale = magnitude / largest_code;
        const float inverse = magnitude > 0.0F ? largest_code / magnitude : 0.0F;
        __builtin_memcpy(to + own, &scale, sizeof scale);
        to += step;
        for (std::int64_t record = begin; record < end; record += matrix.group) {
            const std::int64_t record_end = smaller(record + matrix.group, end);
            for (std::int64_t run = record; run < record_end; run += kRunColumns) {
                const std::int64_t columns = smaller(kRunColumns, record_end - run);
                std::uint8_t* const corrections = to + octets_of(columns) * 2 * kPlanes * step;
                std::uint8_t* codes = to + job.token * kTileColumns;
                std::int32_t sum = 0;
                if (inverse != 0.0F) {
                    sum = quantize_run<kPlanes>(x + (run - begin), columns, inverse, codes, codes_step);
                } else {
                    for (; codes < corrections; codes += codes_step) __builtin_memset(codes, 0, kTileColumns);
                }
                sum *= factor;
                __builtin_memcpy(corrections + own, &sum, sizeof sum);
                to = corrections + step;
            }
        }
    }
}

void quantize(const QuantizeJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    const bool negated_sums = matrix.minima || has_zeros(matrix);
    const std::int32_t factor = negated_sums                     ? -1
                                : matrix.format == Format::kInt8 ? -kSignedBias
                                                                 : -static_cast<std::int32_t>(*matrix.zero);
    if (matrix.format == Format::kInt4) return quantize_with<1>(job, 127.0F, factor);
    quantize_with<2>(job, static_cast<float>(kLargestActivation), factor);
}
