// Matrix products with packed weights. Included once, inside an unnamed namespace.
//
// One numerical scheme for every number of tokens: for each output, blocks of at most kBlockColumns columns of one
// group are summed column by column (multiply_add), and each sum, times the group's scale, is added to the result in
// order. Weights enter as exact floats: code minus zero point, or the stored number. Tiling changes which outputs are
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

// A source reads the codes of one record, `get` the weights of one column of the panel.
struct F32Source {
    explicit F32Source(const PackedMatrix&, const std::uint8_t* record, std::int64_t) : codes(record) {}
    WINDLASS_INLINE void get(std::int64_t column, F32* weights) const {
        const float* from = reinterpret_cast<const float*>(codes) + column * kPanelRows;
        for (int v = 0; v < kVectors; ++v) weights[v] = load(from + v * kLanes);
    }
    const std::uint8_t* codes;
};

struct F16Source {
    explicit F16Source(const PackedMatrix&, const std::uint8_t* record, std::int64_t) : codes(record) {}
    WINDLASS_INLINE void get(std::int64_t column, F32* weights) const {
        const std::uint16_t* from = reinterpret_cast<const std::uint16_t*>(codes) + column * kPanelRows;
        for (int v = 0; v < kVectors; ++v) weights[v] = load_f16(from + v * kLanes);
    }
    const std::uint8_t* codes;
};

struct BF16Source {
    explicit BF16Source(const PackedMatrix&, const std::uint8_t* record, std::int64_t) : codes(record) {}
    WINDLASS_INLINE void get(std::int64_t column, F32* weights) const {
        const std::uint16_t* from = reinterpret_cast<const std::uint16_t*>(codes) + column * kPanelRows;
        for (int v = 0; v < kVectors; ++v) weights[v] = load_bf16(from + v * kLanes);
    }
    const std::uint8_t* codes;
};

struct Int8Source {
    explicit Int8Source(const PackedMatrix&, const std::uint8_t* record, std::int64_t) : codes(record) {}
    WINDLASS_INLINE void get(std::int64_t column, F32* weights) const {
        const std::uint8_t* from = codes + column * kPanelRows;
        widen(load_as<I8x16>(from), weights);
        widen(load_as<I8x16>(from + 16), weights + 16 / kLanes);
    }
    const std::uint8_t* codes;
};

struct Int4Source {
    explicit Int4Source(const PackedMatrix& matrix, const std::uint8_t* record, std::int64_t columns) : codes(record) {
        const std::int64_t scale_bytes = kPanelRows * (matrix.scale_type == ScaleType::kF16 ? 2 : 4);
        const std::uint8_t* zeros = matrix.zeros ? matrix.zeros : record + columns * matrix.column_bytes + scale_bytes;
        zero_low = load_as<U8x16>(zeros);
        zero_high = load_as<U8x16>(zeros + 16);
    }
    WINDLASS_INLINE void get(std::int64_t column, F32* weights) const {
        const U8x16 pairs = load_as<U8x16>(codes + column * 16);
        widen((I8x16)((pairs & 0x0F) - zero_low), weights);
        widen((I8x16)((pairs >> 4) - zero_high), weights + 16 / kLanes);
    }
    const std::uint8_t* codes;
    U8x16 zero_low;
    U8x16 zero_high;
};

WINDLASS_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

WINDLASS_INLINE void load_scales(const PackedMatrix& matrix, const std::uint8_t* record, std::int64_t columns,
                                 F32 (&scales)[kVectors]) {
    const std::uint8_t* from = record + columns * matrix.column_bytes;
    for (int v = 0; v < kVectors; ++v) {
        if (matrix.scale_type == ScaleType::kF16) {
            scales[v] = load_f16(reinterpret_cast<const std::uint16_t*>(from) + v * kLanes);
        } else if (matrix.scale_type == ScaleType::kF32) {
            scales[v] = load(reinterpret_cast<const float*>(from) + v * kLanes);
        } else {
            scales[v] = splat(1.0F);
        }
    }
}

WINDLASS_INLINE void write_panel(const LinearJob& job, std::int64_t panel, std::int64_t token, const F32* sums) {
    const std::int64_t row = panel * kPanelRows;
    const std::int64_t rows = smaller(kPanelRows, job.matrix->rows - row);
    float* y = job.y + token * job.y_stride + row;
    for (int v = 0; v < kVectors; ++v) {
        const std::int64_t count = smaller(kLanes, rows - v * kLanes);
        if (count == kLanes) {
            const F32 bias = job.bias ? load(job.bias + row + v * kLanes) : F32{};
            store(y + v * kLanes, job.bias ? sums[v] + bias : sums[v]);
        } else if (count > 0) {
            const F32 bias = job.bias ? load_part(job.bias + row + v * kLanes, count) : F32{};
            store_part(y + v * kLanes, job.bias ? sums[v] + bias : sums[v], count);
        }
    }
}

template <typename Source, int Tokens>
void linear_direct(const LinearJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
        const std::uint8_t* record = matrix.data + panel * matrix.panel_bytes;
        F32 sums[Tokens][kVectors] = {};
        for (std::int64_t start = 0; start < matrix.columns; start += matrix.group, record += matrix.record_bytes) {
            const std::int64_t columns = smaller(matrix.group, matrix.columns - start);
            const Source source(matrix, record, columns);
            for (std::int64_t begin = 0; begin < columns; begin += kBlockColumns) {
                const std::int64_t end = smaller(begin + kBlockColumns, columns);
                const float* x = job.x + start;
                F32 block[Tokens][kVectors] = {};
#pragma GCC unroll 4
                for (std::int64_t c = begin; c < end; ++c) {
                    F32 weights[kVectors];
                    source.get(c, weights);
#pragma GCC unroll 16
                    for (int t = 0; t < Tokens; ++t) {
                        const F32 value = splat(x[t * job.x_stride + c]);
#pragma GCC unroll 16
                        for (int v = 0; v < kVectors; ++v) block[t][v] = multiply_add(weights[v], value, block[t][v]);
                    }
                }
                F32 scales[kVectors];
                load_scales(matrix, record, columns, scales);
                for (int t = 0; t < Tokens; ++t) {
                    for (int v = 0; v < kVectors; ++v) sums[t][v] = multiply_add(scales[v], block[t][v], sums[t][v]);
                }
            }
        }
        for (int t = 0; t < Tokens; ++t) write_panel(job, panel, t, sums[t]);
    }
}

// One block of columns of one panel, unpacked at `weights` [columns][kPanelRows], times `Tokens` tokens.
template <int Tokens>
void multiply_tile(const float* weights, std::int64_t columns, const float* x, std::int64_t x_stride,
                   const float* scales, float* sums) {
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
        for (int v = 0; v < kTileVectors; ++v) {
            const F32 scale = load(scales + (first + v) * kLanes);
#pragma GCC unroll 16
            for (int t = 0; t < Tokens; ++t) {
                float* sum = sums + t * kPanelRows + (first + v) * kLanes;
                store(sum, multiply_add(scale, block[t][v], load(sum)));
            }
        }
    }
}

using MultiplyTile = void (*)(const float*, std::int64_t, const float*, std::int64_t, const float*, float*);

template <int Tokens>
MultiplyTile tile_for(int tokens) {
    if constexpr (Tokens > 1) {
        if (tokens < Tokens) return tile_for<Tokens - 1>(tokens);
    }
    return multiply_tile<Tokens>;
}

template <typename Source>
void linear_tiled(const LinearJob& job) {
    const PackedMatrix& matrix = *job.matrix;
    float* unpacked = job.scratch;
    float* sums = unpacked + kUnpackedFloats;
    const int rest = job.tokens % kTileTokens;
    const MultiplyTile multiply_full = multiply_tile<kTileTokens>;
    const MultiplyTile multiply_rest = tile_for<kTileTokens>(rest == 0 ? kTileTokens : rest);
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; panel += kTilePanels) {
        const std::int64_t panels = smaller(kTilePanels, job.panel_end - panel);
        __builtin_memset(sums, 0, kSumFloats * sizeof(float));
        for (std::int64_t start = 0, group = 0; start < matrix.columns; start += matrix.group, ++group) {
            const std::int64_t columns = smaller(matrix.group, matrix.columns - start);
            for (std::int64_t begin = 0; begin < columns; begin += kBlockColumns) {
                const std::int64_t count = smaller(kBlockColumns, columns - begin);
                float scales[kTilePanels][kPanelRows];
                for (std::int64_t p = 0; p < panels; ++p) {
                    const std::uint8_t* record =
                        matrix.data + (panel + p) * matrix.panel_bytes + group * matrix.record_bytes;
                    const Source source(matrix, record, columns);
                    float* to = unpacked + p * kBlockColumns * kPanelRows;
                    for (std::int64_t c = 0; c < count; ++c, to += kPanelRows) {
                        F32 weights[kVectors];
                        source.get(begin + c, weights);
                        for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, weights[v]);
                    }
                    F32 loaded[kVectors];
                    load_scales(matrix, record, columns, loaded);
                    for (int v = 0; v < kVectors; ++v) store(scales[p] + v * kLanes, loaded[v]);
                }
                for (int t = 0; t < job.tokens; t += kTileTokens) {
                    const MultiplyTile multiply = t + kTileTokens <= job.tokens ? multiply_full : multiply_rest;
                    const float* x = job.x + t * job.x_stride + start + begin;
                    for (std::int64_t p = 0; p < panels; ++p) {
                        multiply(unpacked + p * kBlockColumns * kPanelRows, count, x, job.x_stride, scales[p],
                                 sums + (p * kLinearTokens + t) * kPanelRows);
                    }
                }
            }
        }
        for (std::int64_t p = 0; p < panels; ++p) {
            for (int t = 0; t < job.tokens; ++t) {
                F32 panel_sums[kVectors];
                for (int v = 0; v < kVectors; ++v) {
                    panel_sums[v] = load(sums + (p * kLinearTokens + t) * kPanelRows + v * kLanes);
                }
                write_panel(job, panel + p, t, panel_sums);
            }
        }
    }
}

template <typename Source>
void linear_with(const LinearJob& job) {
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

void linear(const LinearJob& job) {
    switch (job.matrix->format) {
        case Format::kF32:
            return linear_with<F32Source>(job);
        case Format::kF16:
            return linear_with<F16Source>(job);
        case Format::kBF16:
            return linear_with<BF16Source>(job);
        case Format::kInt8:
            return linear_with<Int8Source>(job);
        case Format::kInt4:
            return linear_with<Int4Source>(job);
    }
}

// One row of a packed table, by unpacking its whole panel: a single token's row, no need for speed.
template <typename Source>
void embed_with(const PackedMatrix& table, std::int64_t row, float* out) {
    const std::uint8_t* record = table.data + row / kPanelRows * table.panel_bytes;
    const int lane = static_cast<int>(row % kPanelRows);
    for (std::int64_t start = 0; start < table.columns; start += table.group, record += table.record_bytes) {
        const std::int64_t columns = smaller(table.group, table.columns - start);
        const Source source(table, record, columns);
        F32 scales[kVectors];
        load_scales(table, record, columns, scales);
        const float scale = scales[lane / kLanes][lane % kLanes];
        for (std::int64_t c = 0; c < columns; ++c) {
            F32 weights[kVectors];
            source.get(c, weights);
            out[start + c] = weights[lane / kLanes][lane % kLanes] * scale;
        }
    }
}

void embed(const PackedMatrix& table, std::int64_t row, float* out) {
    switch (table.format) {
        case Format::kF32:
            return embed_with<F32Source>(table, row, out);
        case Format::kF16:
            return embed_with<F16Source>(table, row, out);
        case Format::kBF16:
            return embed_with<BF16Source>(table, row, out);
        case Format::kInt8:
            return embed_with<Int8Source>(table, row, out);
        case Format::kInt4:
            return embed_with<Int4Source>(table, row, out);
    }
}
