// Matrix products with float weights. Included once, inside an unnamed namespace.
//
// One numerical scheme for every number of tokens: for each output, blocks of at most kBlockColumns columns are summed
// column by column (multiply_add), and each sum is added to the result in order, times the scale of its columns where
// there are such (multiply_add). Tiling changes which outputs are
// computed together, never the operations of one output.

// Tokens whose sums stay in registers next to the weights, which are then unpacked on the fly.
constexpr int kDirectTokens = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 1;
// Register tile when weights come unpacked from the L1 cache: tokens x vectors.
#if defined(__aarch64__)
constexpr int kTileTokens = 6;
constexpr int kTileVectors = 4;
#else
constexpr int kTileTokens = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 5;
constexpr int kTileVectors = 2;
#endif
// Panels unpacked together, so that each load of activations into L1 serves all of them.
constexpr int kTilePanels = 2;

constexpr std::size_t kUnpackedFloats = static_cast<std::size_t>(kTilePanels) * kBlockColumns * kPanelRows;
constexpr std::size_t kSumFloats = static_cast<std::size_t>(kTilePanels) * kLinearTokens * kPanelRows;

// A source reads weights of one column of a panel as floats. Where it is kScaled, a weight is kUnit times that and
// times the scale of its row and group. Tile has the same scales; what the numbers are unpacked from makes no
// difference then.
struct F32Source {
    using Element = float;
    using Tile = F32Source;
    static constexpr bool kScaled = false;
    static WINDLASS_INLINE F32 get(const float* from) { return load(from); }
};
struct F16Source {
    using Element = std::uint16_t;
    using Tile = F32Source;
    static constexpr bool kScaled = false;
    static WINDLASS_INLINE F32 get(const std::uint16_t* from) { return load_f16(from); }
};
struct BF16Source {
    using Element = std::uint16_t;
    using Tile = F32Source;
    static constexpr bool kScaled = false;
    static WINDLASS_INLINE F32 get(const std::uint16_t* from) { return load_bf16(from); }
};
// The bits of an e4m3 number, put where a float16 has them, are the 2^-8th part of it, subnormals included.
struct Fp8Source {
    using Element = std::uint8_t;
    using Tile = Fp8Source;
    static constexpr bool kScaled = true;
    static constexpr float kUnit = 0x1p8F;
    static WINDLASS_INLINE F32 get(const std::uint8_t* from) {
        typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));
        typedef std::int16_t Signed __attribute__((vector_size(kLanes * 2)));
        // The sign comes twice, as the sign and as the highest bit of the exponent, which is to be 0.
        const U16 bits = (U16) __builtin_convertvector(load_as<Bytes>(from), Signed);
        return widen_f16(bits << 7 & 0xBFFF);
    }
};

WINDLASS_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Vectors `first` .. `first + count` of one token's results for one panel.
WINDLASS_INLINE void write_panel(const LinearJob& job, std::int64_t panel, std::int64_t token, int first, int count,
                                 const F32* sums) {
    const std::int64_t row = panel * kPanelRows + first * kLanes;
    const std::int64_t rows = job.matrix->rows - row;
    float* y = job.y + token * job.y_stride + row;
    for (int v = 0; v < count; ++v) {
        const std::int64_t lanes = smaller(kLanes, rows - v * kLanes);
        if (lanes == kLanes) {
            const F32 bias = job.bias ? load(job.bias + row + v * kLanes) : F32{};
            store(y + v * kLanes, job.bias ? sums[v] + bias : sums[v]);
        } else if (lanes > 0) {
            const F32 bias = job.bias ? load_part(job.bias + row + v * kLanes, lanes) : F32{};
            store_part(y + v * kLanes, job.bias ? sums[v] + bias : sums[v], lanes);
        }
    }
}

// The columns of a panel from some multiple of kBlockColumns on, and where the source is kScaled their scales.
template <typename Source>
struct Block {
    const typename Source::Element* elements;
    const float* scales;
};

template <typename Source>
WINDLASS_INLINE Block<Source> block_of(const PackedMatrix& matrix, std::int64_t panel, std::int64_t column) {
    using Element = typename Source::Element;
    const std::uint8_t* const from =
        matrix.data + panel * matrix.panel_bytes + column * kPanelRows * static_cast<std::int64_t>(sizeof(Element));
    if constexpr (Source::kScaled) {
        constexpr std::int64_t kScaleBytes = kPanelRows * sizeof(float);
        const std::int64_t group = column / matrix.group;
        const std::uint8_t* const first =
            matrix.data + panel * matrix.panel_bytes +
            group * (matrix.group * kPanelRows * static_cast<std::int64_t>(sizeof(Element)) + kScaleBytes);
        return {reinterpret_cast<const Element*>(from + (group + 1) * kScaleBytes),
                reinterpret_cast<const float*>(first)};
    }
    return {reinterpret_cast<const Element*>(from), nullptr};
}

// A result with the sum of a block's products in it, for vector v of the panel.
template <typename Source>
WINDLASS_INLINE F32 add_block(F32 sum, F32 block, const float* scales, int v) {
    if constexpr (Source::kScaled) {
        return multiply_add(block, load(scales + v * kLanes) * splat(Source::kUnit), sum);
    }
    return sum + block;
}

template <typename Source, int Tokens>
void linear_direct(const LinearJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
        F32 sums[Tokens][kVectors] = {};
        for (std::int64_t begin = 0; begin < matrix.columns; begin += kBlockColumns) {
            const Block<Source> from = block_of<Source>(matrix, panel, begin);
            const float* const x = job.x + begin;
            const std::int64_t count = smaller(kBlockColumns, matrix.columns - begin);
            F32 block[Tokens][kVectors] = {};
#pragma GCC unroll 4
            for (std::int64_t c = 0; c < count; ++c) {
                F32 weights[kVectors];
                for (int v = 0; v < kVectors; ++v)
                    weights[v] = Source::get(from.elements + c * kPanelRows + v * kLanes);
#pragma GCC unroll 16
                for (int t = 0; t < Tokens; ++t) {
                    const F32 value = splat(x[t * job.x_stride + c]);
#pragma GCC unroll 16
                    for (int v = 0; v < kVectors; ++v) block[t][v] = multiply_add(weights[v], value, block[t][v]);
                }
            }
            for (int t = 0; t < Tokens; ++t) {
                for (int v = 0; v < kVectors; ++v) {
                    sums[t][v] = add_block<Source>(sums[t][v], block[t][v], from.scales, v);
                }
            }
        }
        for (int t = 0; t < Tokens; ++t) write_panel(job, panel, t, 0, kVectors, sums[t]);
    }
}

// One block of columns of one panel, unpacked at `weights` [columns][kPanelRows], times `Tokens` tokens.
template <typename Source, int Tokens>
void multiply_tile(const float* weights, const float* scales, std::int64_t columns, const float* x,
                   std::int64_t x_stride, float* sums) {
    for (int first = 0; first < kVectors; first += kTileVectors) {
        F32 block[Tokens][kTileVectors] = {};
        const float* column = weights + first * kLanes;
        for (std::int64_t c = 0; c < columns; ++c, column += kPanelRows) {
            F32 w[kTileVectors];
#pragma GCC unroll 16
            for (int v = 0; v < kTileVectors; ++v) w[v] = load(column + v * kLanes);
#pragma GCC unroll 16
            for (int t = 0; t < Tokens; ++t) {
                const F32 value = splat(x[t * x_stride + c]);
#pragma GCC unroll 16
                for (int v = 0; v < kTileVectors; ++v) block[t][v] = multiply_add(w[v], value, block[t][v]);
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
            for (int v = 0; v < kTileVectors; ++v) {
                float* sum = sums + t * kPanelRows + (first + v) * kLanes;
                store(sum, add_block<Source>(load(sum), block[t][v], scales, first + v));
            }
        }
    }
}

using MultiplyTile = void (*)(const float*, const float*, std::int64_t, const float*, std::int64_t, float*);

template <typename Source, int Tokens>
MultiplyTile tile_for(int tokens) {
    if constexpr (Tokens > 1) {
        if (tokens < Tokens) return tile_for<Source, Tokens - 1>(tokens);
    }
    return multiply_tile<Source, Tokens>;
}

template <typename Source>
void linear_tiled(const LinearJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    float* unpacked = job.scratch;
    float* sums = unpacked + kUnpackedFloats;
    const int rest = job.tokens % kTileTokens;
    using Tile = typename Source::Tile;
    const MultiplyTile multiply_full = multiply_tile<Tile, kTileTokens>;
    const MultiplyTile multiply_rest = tile_for<Tile, kTileTokens>(rest == 0 ? kTileTokens : rest);
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; panel += kTilePanels) {
        const std::int64_t panels = smaller(kTilePanels, job.panel_end - panel);
        __builtin_memset(sums, 0, kSumFloats * sizeof(float));
        for (std::int64_t begin = 0; begin < matrix.columns; begin += kBlockColumns) {
            const std::int64_t count = smaller(kBlockColumns, matrix.columns - begin);
            const float* scales[kTilePanels] = {};
            for (std::int64_t p = 0; p < panels; ++p) {
                const Block<Source> block = block_of<Source>(matrix, panel + p, begin);
                const typename Source::Element* const from = block.elements;
                scales[p] = block.scales;
                float* to = unpacked + p * kBlockColumns * kPanelRows;
                for (std::int64_t i = 0; i < count * kPanelRows; i += kLanes) store(to + i, Source::get(from + i));
            }
            for (int t = 0; t < job.tokens; t += kTileTokens) {
                const MultiplyTile multiply = t + kTileTokens <= job.tokens ? multiply_full : multiply_rest;
                const float* x = job.x + t * job.x_stride + begin;
                for (std::int64_t p = 0; p < panels; ++p) {
                    multiply(unpacked + p * kBlockColumns * kPanelRows, scales[p], count, x, job.x_stride,
                             sums + (p * kLinearTokens + t) * kPanelRows);
                }
            }
        }
        for (std::int64_t p = 0; p < panels; ++p) {
            for (int t = 0; t < job.tokens; ++t) {
                F32 panel_sums[kVectors];
                for (int v = 0; v < kVectors; ++v) {
                    panel_sums[v] = load(sums + (p * kLinearTokens + t) * kPanelRows + v * kLanes);
                }
                write_panel(job, panel + p, t, 0, kVectors, panel_sums);
            }
        }
    }
}

template <typename Source>
void linear_float(const LinearJob& job) {
    if (job.tokens == 1) return linear_direct<Source, 1>(job);
    if constexpr (kDirectTokens >= 2) {
        if (job.tokens == 2) return linear_direct<Source, 2>(job);
    }
    if constexpr (kDirectTokens >= 4) {
        if (job.tokens == 3) return linear_direct<Source, 3>(job);
        if (job.tokens == 4) return linear_direct<Source, 4>(job);
    }
    linear_tiled<Source>(job);
}
