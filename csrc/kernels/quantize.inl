// Quantization of activations into tiles. Included once, inside an unnamed namespace.

// Magnitudes below this count as zero: their reciprocals would not be finite.
constexpr float kSmallestMagnitude = 0x1p-100F;

// The bits of infinity; those of NaNs without their sign are above.
constexpr std::int32_t kInfiniteBits = 0x7F800000;

// Rounds to the nearest integer, ties to even, for |x| < 2^22.
WINDLASS_INLINE I32 round_to_integer(F32 x) {
    const F32 rounder = splat(0x1.8p23F);
    return (I32)(x + rounder) - (I32)rounder;
}

// The largest magnitude of `count` values as the bits of a float: anything not finite is above all finite values.
std::int32_t largest_magnitude(const float* x, std::int64_t count) {
    I32 largest = {};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const I32 bits = load_as<I32>(x + i) & 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    std::int32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane) result = result > largest[lane] ? result : largest[lane];
    for (; i < count; ++i) {
        const std::int32_t bits = load_as<std::int32_t>(x + i) & 0x7FFFFFFF;
        result = result > bits ? result : bits;
    }
    return result;
}

// One token's run: its codes into every `step`-th quad of `to`, plane after plane; returns their sum.
template <int kPlanes>
WINDLASS_INLINE std::int32_t quantize_run(const float* x, std::int64_t columns, float inverse, std::uint8_t* to,
                                          std::int64_t step) {
    alignas(64) std::int32_t codes[kRunColumns] = {};
    I32 sums = {};
    for (std::int64_t c = 0; c < columns; c += kLanes) {
        const std::int64_t count = smaller(kLanes, columns - c);
        const I32 rounded = round_to_integer((count == kLanes ? load(x + c) : load_part(x + c, count)) * inverse);
        sums += rounded;
        __builtin_memcpy(codes + c, &rounded, sizeof rounded);
    }
    std::int8_t low[kRunColumns], high[kRunColumns];
    for (int c = 0; c < kRunColumns; ++c) {
        const std::int32_t top = kPlanes == 2 ? (codes[c] + (1 << (kLowBits - 1))) >> kLowBits : 0;
        high[c] = static_cast<std::int8_t>(top);
        low[c] = static_cast<std::int8_t>(codes[c] - top * (1 << kLowBits));
    }
    const std::int64_t quads = octets_of(columns) * 2;
    for (std::int64_t q = 0; q < quads; ++q) {
        __builtin_memcpy(to + q * kPlanes * step, low + q * 4, 4);
        if constexpr (kPlanes == 2) __builtin_memcpy(to + (q * kPlanes + 1) * step, high + q * 4, 4);
    }
    std::int32_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    return sum;
}

template <int kPlanes>
void quantize_with(const QuantizeJob& job, float largest_code, std::int32_t factor) {
    const PackedMatrix& matrix = *job.matrix;
    const std::int64_t step = job.tokens * 4;
    const std::int64_t block_columns = matrix.group * matrix.block_records;
    std::uint8_t* to = job.tile + job.token * 4;
    for (std::int64_t begin = 0; begin < matrix.columns; begin += block_columns) {
        const std::int64_t end = smaller(begin + block_columns, matrix.columns);
        const std::int32_t bits = largest_magnitude(job.x + begin, end - begin);
        const float magnitude = load_as<float>(&bits);
        float scale = 0.0F, inverse = 0.0F;
        if (bits >= kInfiniteBits) {
            scale = __builtin_nanf("");
        } else if (magnitude >= kSmallestMagnitude) {
            scale = magnitude / largest_code;
            inverse = largest_code / magnitude;
        }
        __builtin_memcpy(to, &scale, sizeof scale);
        to += step;
        for (std::int64_t record = begin; record < end; record += matrix.group) {
            const std::int64_t record_end = smaller(record + matrix.group, end);
            for (std::int64_t run = record; run < record_end; run += kRunColumns) {
                const std::int64_t columns = smaller(kRunColumns, record_end - run);
                std::uint8_t* const corrections = to + octets_of(columns) * 2 * kPlanes * step;
                std::int32_t sum = 0;
                if (inverse != 0.0F) {
                    sum = quantize_run<kPlanes>(job.x + run, columns, inverse, to, step);
                } else {
                    for (; to < corrections; to += step) __builtin_memset(to, 0, 4);
                }
                sum *= factor;
                __builtin_memcpy(corrections, &sum, sizeof sum);
                to = corrections + step;
            }
        }
    }
}

void quantize(const QuantizeJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    if (matrix.format == Format::kInt8) return quantize_with<2>(job, 127.0F * (1 << kLowBits), -kSignedBias);
    quantize_with<1>(job, 127.0F, matrix.zero != nullptr ? -static_cast<std::int32_t>(*matrix.zero) : -1);
}
