// Matrix products with quantized weights and activations. Included once, inside an unnamed namespace.
//
// One numerical scheme for every number of tokens. For each output: the products of a run of columns are summed as
// integers, zero points included; as a float, times the weight's scale, the sum is added to that of its activation
// block (multiply_add), and this, times the activation's scale, to the result (multiply_add), all in order. Tiling
// changes which outputs are computed together, never the operations of one output.
//
// A tile of quantized activations is, for each block: the scales [tokens] (float); then for each run of the block's
// records: for each kTileColumns columns, for each plane, as many bytes of each token [tokens][kTileColumns]; then the
// corrections [tokens] (int32): what the zero point adds to the sum of the run, or, when each record has its own zero
// points or minima, the negated sum of the run's activations, to be multiplied by them. Times the minimum it is added
// after the products (multiply_add).

// Lines of a run and its scales.
template <typename Codes>
constexpr int kFetchedLines = static_cast<int>(kRunColumns / kOctet * Codes::kOctetBytes / 64 + 1);

// Vectors of a panel that are worked on together: their sums should stay in registers.
template <int Tokens>
constexpr int kCodeVectors = Tokens == 1 && kLanes < 16   ? kVectors
                             : kMatrixProducts            ? (Tokens == 2   ? 4
                                                             : Tokens <= 4 ? 2
                                                                           : 1)
                             : kLanes == 4 && Tokens == 2 ? 4
                                                          : 2;

// From so many tokens on, the kernel fetches what it will read of the next panel: with many sums in flight the
// processor does not look that far by itself.
constexpr int kFetchTokens = 5;

// Columns of a token that lie together in a tile.
constexpr int kTileColumns = kMatrixProducts ? kOctet : 4;

constexpr std::int64_t kRunOctets = kRunColumns / kOctet;
// Tokens of a tile: the sums and what they are made of should stay in registers.
constexpr int kSmallTokens = kMatrixProducts ? 8 : kPairedActivations && kLanes == 8 ? 4 : 6;
constexpr int kLargeTokens = kMatrixProducts ? 8 : kPairedActivations ? (kLanes == 16 ? 8 : 4) : (kLanes == 16 ? 4 : 3);

struct NibbleCodes {
    static constexpr int kPlanes = 1;
    static constexpr int kTileTokens = kSmallTokens;
    static constexpr std::int64_t kOctetBytes = kQuadBytes;
    // Octets that lie together.
    static constexpr int kOctets = 1;
    using Sums = SmallProducts;
    // Both quads of octet j of a run, for vector v of the panel.
    static WINDLASS_INLINE void get(const std::uint8_t* run, std::int64_t j, int v, U8* quads) {
        const U8 pairs = load_as<U8>(run + j * kOctetBytes + v * kLanes * 4);
        quads[0] = pairs & 0x0F;
        quads[1] = pairs >> 4;
    }
    // Column c of a record, and what is to be taken off all codes beside minima.
    static int at(const std::uint8_t* record, std::int64_t c, std::int64_t lane) {
        const std::uint8_t pair = record[c / kOctet * kOctetBytes + lane * 4 + c % 4];
        return c % kOctet < 4 ? pair & 0x0F : pair >> 4;
    }
    static WINDLASS_INLINE std::int32_t bias(const PackedMatrix&) { return 0; }
};

struct ByteCodes {
    static constexpr int kPlanes = 2;
    static constexpr int kTileTokens = kLargeTokens;
    static constexpr std::int64_t kOctetBytes = 2 * kQuadBytes;
    static constexpr int kOctets = 1;
    using Sums = LargeProducts;
    static WINDLASS_INLINE void get(const std::uint8_t* run, std::int64_t j, int v, U8* quads) {
        const std::uint8_t* const octet = run + j * kOctetBytes + v * kLanes * 4;
        quads[0] = load_as<U8>(octet) ^ kSignedBias;
        quads[1] = load_as<U8>(octet + kQuadBytes) ^ kSignedBias;
    }
    static int at(const std::uint8_t* record, std::int64_t c, std::int64_t lane) {
        return static_cast<std::int8_t>(record[c / 4 * kQuadBytes + lane * 4 + c % 4]);
    }
    static WINDLASS_INLINE std::int32_t bias(const PackedMatrix&) { return kSignedBias; }
};

// `bits` of every byte, those above them masked away.
WINDLASS_INLINE U8 shift_right(U8 bytes, int bits) { return (U8)((U32)bytes >> bits); }
WINDLASS_INLINE int shift_right(int byte, int bits) { return byte >> bits; }

// What kInt6 and kInt5 have in common. Fields::get(part, q) is quad q of a piece, of which part(i) has the bytes i.
template <typename Fields>
struct SplitCodes {
    static constexpr int kPlanes = 2;
    static constexpr int kTileTokens = kLargeTokens;
    static constexpr int kOctets = Fields::kOctets;
    static constexpr std::int64_t kPieceBytes = Fields::kParts * kQuadBytes;
    static constexpr std::int64_t kOctetBytes = kPieceBytes / kOctets;
    using Sums = MediumProducts;
    static WINDLASS_INLINE void get(const std::uint8_t* run, std::int64_t j, int v, U8* quads) {
        const std::uint8_t* const piece = run + j / kOctets * kPieceBytes + v * kLanes * 4;
        const auto part = [&](int i) WINDLASS_INLINE_LAMBDA { return load_as<U8>(piece + i * kQuadBytes); };
        const int octet = static_cast<int>(j % kOctets);
        quads[0] = Fields::get(part, octet * 2);
        quads[1] = Fields::get(part, octet * 2 + 1);
    }
    static int at(const std::uint8_t* record, std::int64_t c, std::int64_t lane) {
        constexpr std::int64_t kColumns = kOctets * kOctet;
        const std::uint8_t* const piece = record + c / kColumns * kPieceBytes + lane * 4 + c % 4;
        const auto part = [&](int i) { return static_cast<int>(piece[i * kQuadBytes]); };
        return Fields::get(part, static_cast<int>(c % kColumns / 4));
    }
    static WINDLASS_INLINE std::int32_t bias(const PackedMatrix& matrix) { return *matrix.zero; }
};

struct SixBits {
    static constexpr int kOctets = 2, kParts = 3;
    template <typename Part>
    static WINDLASS_INLINE auto get(const Part& part, int q) {
        if (q < 3) return part(q) & 0x3F;
        return (shift_right(part(0), 6) & 0x03) | (shift_right(part(1), 4) & 0x0C) | (shift_right(part(2), 2) & 0x30);
    }
};

struct FiveBits {
    static constexpr int kOctets = 4, kParts = 5;
    template <typename Part>
    static WINDLASS_INLINE auto get(const Part& part, int q) {
        if (q < 5) return part(q) & 0x1F;
        if (q < 7) return (shift_right(part(2 * q - 10), 5) & 0x07) | (shift_right(part(2 * q - 9), 3) & 0x18);
        return (shift_right(part(4), 5) & 0x07) | (shift_right(part(1), 2) & 0x08) | (shift_right(part(3), 1) & 0x10);
    }
};

WINDLASS_INLINE std::int64_t octets_of(std::int64_t columns) { return (columns + kOctet - 1) / kOctet; }
WINDLASS_INLINE std::int64_t scale_bytes(const PackedMatrix& matrix) {
    return kPanelRows * (matrix.scale_type == ScaleType::kProduct ? 1 : matrix.scale_type == ScaleType::kF16 ? 2 : 4);
}

WINDLASS_INLINE bool has_zeros(const PackedMatrix& matrix) {
    return matrix.format == Format::kInt4 && matrix.zero == nullptr && !matrix.minima;
}

constexpr std::int64_t kFactorBytes = kPanelRows * 2;

// What stands before the records of an activation block.
WINDLASS_INLINE std::int64_t head_bytes(const PackedMatrix& matrix) {
    return matrix.scale_type == ScaleType::kProduct ? kFactorBytes * (matrix.minima ? 2 : 1) : 0;
}

// What stands behind the codes of a record.
WINDLASS_INLINE std::int64_t tail_bytes(const PackedMatrix& matrix) {
    return scale_bytes(matrix) * (matrix.minima ? 2 : 1) + (has_zeros(matrix) ? kPanelRows : 0);
}

// Which matrices a kernel is for. kPlain: records of whole runs, without minima, and scales that are no products; what
// others need would cost it registers, and with them its speed.
enum class Scaling { kPlain, kAny };

WINDLASS_INLINE bool is_plain(const PackedMatrix& matrix) {
    return !matrix.minima && matrix.scale_type != ScaleType::kProduct && matrix.group % kRunColumns == 0 &&
           matrix.columns % matrix.group == 0;
}

// Scales or minima of vector v; `factors` are those of the block.
template <Scaling kScaling>
WINDLASS_INLINE F32 load_scale(const PackedMatrix& matrix, const std::uint8_t* scales, const std::uint8_t* factors,
                               int v) {
    if (kScaling == Scaling::kAny && matrix.scale_type == ScaleType::kProduct) {
        const I32 code = (load_bytes(scales + v * kLanes) ^ 0x80) - 0x80;
        return __builtin_convertvector(code, F32) *
               load_f16(reinterpret_cast<const std::uint16_t*>(factors) + v * kLanes);
    }
    if (matrix.scale_type == ScaleType::kF16) {
        return load_f16(reinterpret_cast<const std::uint16_t*>(scales) + v * kLanes);
    }
    return load(reinterpret_cast<const float*>(scales) + v * kLanes);
}

int tile_tokens(const PackedMatrix& matrix) { return matrix.format == Format::kInt4 ? kSmallTokens : kLargeTokens; }

std::size_t tile_bytes(const PackedMatrix& matrix, int tokens) {
    const std::int64_t planes = matrix.format == Format::kInt4 ? 1 : 2;
    const auto record_bytes = [&](std::int64_t columns) {
        return octets_of(columns) * kOctet * planes + (columns + kRunColumns - 1) / kRunColumns * 4;
    };
    const std::int64_t records = matrix.columns / matrix.group, rest = matrix.columns % matrix.group;
    const std::int64_t blocks = (records + (rest > 0) + matrix.block_records - 1) / matrix.block_records;
    const std::int64_t bytes = records * record_bytes(matrix.group) + (rest > 0 ? record_bytes(rest) : 0) + blocks * 4;
    return static_cast<std::size_t>(bytes * tokens);
}

// Walks the codes of a panel: calls block(factors) where an activation block begins, run(codes, octets, scales) for
// each run of columns, and end() where the block ends. The runs of all records of a block are one loop: compilers save
// registers around every loop inside another.
template <typename Codes, Scaling kScaling, typename Block, typename Run, typename End>
WINDLASS_INLINE void for_runs(const PackedMatrix& matrix, const std::uint8_t* codes, const Block& block, const Run& run,
                              const End& end) {
    constexpr bool kPlain = kScaling == Scaling::kPlain;
    const std::int64_t block_columns = matrix.group * matrix.block_records;
    const std::int64_t before_block = kPlain ? 0 : head_bytes(matrix), after_codes = tail_bytes(matrix);
    for (std::int64_t column = 0; column < matrix.columns;) {
        const std::int64_t block_end = smaller(column + block_columns, matrix.columns);
        block(codes);
        codes += before_block;
        const std::uint8_t* scales = codes;
        std::int64_t octets = 0;  // of the record, that are left
        do {
            if (octets == 0) {
                octets = octets_of(kPlain ? matrix.group : smaller(matrix.group, matrix.columns - column));
                scales = codes + octets * Codes::kOctetBytes;
                column += matrix.group;
            }
            const std::int64_t count = kPlain ? kRunOctets : smaller(octets, kRunOctets);
            run(codes, count, scales);
            codes += count * Codes::kOctetBytes;
            octets -= count;
            if (octets == 0) codes += after_codes;
        } while (octets > 0 || column < block_end);
        end();
    }
}

// Vectors that the sums of a row of all tokens take part in.
template <int Tokens>
constexpr int kTokenGroups = (Tokens + SumLanes<Tokens>::kTokens - 1) / SumLanes<Tokens>::kTokens;

// The first token of group t: the last of an odd number comes with the one before.
template <int Tokens>
constexpr int first_token(int t) {
    constexpr int kTogether = SumLanes<Tokens>::kTokens;
    return t * kTogether < Tokens - kTogether ? t * kTogether : Tokens - kTogether;
}

// Fetches memory evenly: kFetchedLines each time that the work done since the last time adds up to `interval`.
struct Fetch {
    const std::uint8_t* from = nullptr;
    std::int64_t interval = INT64_MAX;
    std::int64_t done = 0;
};

// The products of a tile with some vectors of a panel, from vector `first` on.
template <typename Codes, Scaling kScaling, int Tokens, int Vectors>
void multiply_codes(const PackedMatrix& matrix, const std::uint8_t* panel, const std::uint8_t* tile, int first,
                    Fetch fetch, F32 (*totals)[Vectors * SumLanes<Tokens>::kTokens]) {
    using Lanes = SumLanes<Tokens>;
    constexpr int kPlanes = Codes::kPlanes, kParts = Lanes::kTokens, kGroups = kTokenGroups<Tokens>;
    constexpr int kSums = Vectors * kParts;
    const bool own_zeros = has_zeros(matrix), minima = kScaling == Scaling::kAny && matrix.minima;
    const I32 bias = splat(Codes::bias(matrix));
    const std::uint8_t* block_scales = tile;
    const std::uint8_t* factors = panel;
    F32 block[kGroups][kSums];
    const auto begin_block = [&](const std::uint8_t* head) WINDLASS_INLINE_LAMBDA {
        factors = head;
        block_scales = tile;
        tile += Tokens * 4;
        for (int t = 0; t < kGroups; ++t) {
            for (int v = 0; v < kSums; ++v) block[t][v] = F32{};
        }
    };
    const auto run = [&](const std::uint8_t* codes, std::int64_t octets,
                         const std::uint8_t* scales) WINDLASS_INLINE_LAMBDA {
        const std::uint8_t* const corrections = tile + octets * 2 * kPlanes * Tokens * 4;
        fetch.done += Tokens * Vectors;
        if (fetch.done >= fetch.interval) {
            fetch.done -= fetch.interval;
#pragma GCC unroll 32
            for (int line = 0; line < kFetchedLines<Codes>; ++line) __builtin_prefetch(fetch.from + line * 64, 0, 2);
            fetch.from += kFetchedLines<Codes> * 64;
        }
        typename Lanes::template Sums<Codes> sums[kGroups][kSums];
        const auto zeros = [&](int v) WINDLASS_INLINE_LAMBDA {
            if (!own_zeros) return bias;
            return Lanes::of_rows(load_bytes(scales + scale_bytes(matrix) + (first + v / kParts) * kLanes), v % kParts);
        };
        const auto of_tokens = [&](int t) WINDLASS_INLINE_LAMBDA {
            return Lanes::template of_tokens<std::int32_t>(corrections + first_token<Tokens>(t) * 4);
        };
        const auto correction = [&](int t, I32 own) WINDLASS_INLINE_LAMBDA {
            const I32 value = of_tokens(t);
            return own_zeros || minima ? value * own : value;
        };
#pragma GCC unroll 8
        for (int v = 0; v < kSums; ++v) {
            const I32 own = zeros(v);
#pragma GCC unroll 8
            for (int t = 0; t < kGroups; ++t) {
                sums[t][v].start(correction(t, own));
            }
        }
        const auto octet = [&](std::int64_t j) WINDLASS_INLINE_LAMBDA {
            const std::uint8_t* const activations = tile + j * 2 * kPlanes * Tokens * 4;
            U8 quads[Vectors][2];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) Codes::get(codes, j, first + v, quads[v]);
#pragma GCC unroll 2
            for (int q = 0; q < 2; q += Lanes::kQuads) {
#pragma GCC unroll 2
                for (int plane = 0; plane < kPlanes; ++plane) {
                    const int before = (q * 4 / kTileColumns * kPlanes + plane) * Tokens;
#pragma GCC unroll 8
                    for (int t = 0; t < kGroups; ++t) {
                        const int at = (before + first_token<Tokens>(t)) * kTileColumns + q * 4 % kTileColumns;
#pragma GCC unroll 8
                        for (int v = 0; v < kSums; ++v) {
                            sums[t][v].add(Lanes::codes(quads[v / kParts], q, v % kParts), plane, activations + at);
                        }
                    }
                }
            }
        };
#pragma GCC unroll 4
        for (int j = 0; j < kRunOctets; ++j) {
            if (j < octets) octet(j);
        }
        const auto of_rows = [&](int v, const std::uint8_t* own, const std::uint8_t* of_block) WINDLASS_INLINE_LAMBDA {
            return Lanes::of_rows(load_scale<kScaling>(matrix, own, of_block, first + v / kParts), v % kParts);
        };
#pragma GCC unroll 8
        for (int v = 0; v < kSums; ++v) {
            const F32 scale = of_rows(v, scales, factors);
            const I32 own = zeros(v);
#pragma GCC unroll 8
            for (int t = 0; t < kGroups; ++t) {
                const I32 total = sums[t][v].total(correction(t, own));
                block[t][v] = multiply_add(__builtin_convertvector(total, F32), scale, block[t][v]);
            }
        }
        if (minima) {
#pragma GCC unroll 8
            for (int v = 0; v < kSums; ++v) {
                const F32 minimum = of_rows(v, scales + scale_bytes(matrix), factors + kFactorBytes);
#pragma GCC unroll 8
                for (int t = 0; t < kGroups; ++t) {
                    block[t][v] = multiply_add(__builtin_convertvector(of_tokens(t), F32), minimum, block[t][v]);
                }
            }
        }
        tile = corrections + Tokens * 4;
    };
    const auto end_block = [&]() WINDLASS_INLINE_LAMBDA {
        for (int t = 0; t < kGroups; ++t) {
            const F32 scale = Lanes::template of_tokens<float>(block_scales + first_token<Tokens>(t) * 4);
            for (int v = 0; v < kSums; ++v) {
                totals[t][v] = multiply_add(block[t][v], scale, totals[t][v]);
            }
        }
    };
    for_runs<Codes, kScaling>(matrix, panel, begin_block, run, end_block);
}

// One panel times tile `index` of the job.
template <typename Codes, Scaling kScaling, int Tokens>
void multiply_panel(const LinearJob& job, std::int64_t panel, int index) {
    const std::uint8_t* const codes = job.matrix->data + panel * job.matrix->panel_bytes;
    const std::uint8_t* const tile = job.tiles + index * job.tile_stride;
    const int first = index * Codes::kTileTokens;
    constexpr int kTogether = kCodeVectors<Tokens>;
    if constexpr (Tokens >= kFetchTokens) {
        // The results go to lines that no cache has; stores wait for them in order, and those that follow wait too.
        float* const y = job.y + first * job.y_stride + panel * kPanelRows;
        for (int t = 0; t < Tokens; ++t) {
            __builtin_prefetch(y + t * job.y_stride, 1);
            __builtin_prefetch(y + t * job.y_stride + kPanelRows / 2, 1);
        }
    }
    const std::int64_t runs = job.matrix->columns / kRunColumns, interval = std::int64_t{job.tokens} * kVectors;
    using Lanes = SumLanes<Tokens>;
    constexpr int kParts = Lanes::kTokens;
    for (int v = 0; v < kVectors; v += kTogether) {
        Fetch fetch;
        if (job.tokens >= kFetchTokens && panel + 1 < job.panel_end) {
            // All tiles together fetch the next panel, in order.
            const std::int64_t done = (first * kVectors + v * Tokens) * runs;
            fetch = {codes + job.matrix->panel_bytes + done / interval * kFetchedLines<Codes> * 64, interval,
                     done % interval};
        }
        F32 totals[kTokenGroups<Tokens>][kTogether * kParts] = {};
        multiply_codes<Codes, kScaling, Tokens, kTogether>(*job.matrix, codes, tile, v, fetch, totals);
        for (F32* const sums : totals) Lanes::template separate<kTogether>(sums);
        for (int t = 0; t < Tokens; ++t) {
            const F32* const rows = totals[t / kParts] + (t - first_token<Tokens>(t / kParts)) * kTogether;
            write_panel(job, panel, first + t, v, kTogether, rows);
        }
    }
}

using MultiplyPanel = void (*)(const LinearJob&, std::int64_t, int);

template <typename Codes, Scaling kScaling, int Tokens>
MultiplyPanel panel_function(int tokens) {
    if constexpr (Tokens > 1) {
        if (tokens < Tokens) return panel_function<Codes, kScaling, Tokens - 1>(tokens);
    }
    return multiply_panel<Codes, kScaling, Tokens>;
}

template <typename Codes, Scaling kScaling>
void linear_scaled(const LinearJob& job) {
    constexpr int kTokens = Codes::kTileTokens;
    const int rest = job.tokens % kTokens;
    const MultiplyPanel full = multiply_panel<Codes, kScaling, kTokens>;
    const MultiplyPanel last = panel_function<Codes, kScaling, kTokens>(rest == 0 ? kTokens : rest);
    const int tiles = (job.tokens + kTokens - 1) / kTokens;
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
        for (int i = 0; i < tiles; ++i) (i < tiles - 1 ? full : last)(job, panel, i);
    }
}

template <typename Codes>
void linear_codes(const LinearJob& job) {
    (is_plain(*job.matrix) ? linear_scaled<Codes, Scaling::kPlain> : linear_scaled<Codes, Scaling::kAny>)(job);
}

// The embedding of one token: a row of codes.
template <typename Codes>
void embed_codes(const PackedMatrix& table, std::int64_t row, float* out) {
    const std::uint8_t* codes = table.data + row / kPanelRows * table.panel_bytes;
    const std::uint8_t* factors = codes;
    const std::int64_t lane = row % kPanelRows;
    const std::int64_t block_columns = table.group * table.block_records;
    for (std::int64_t column = 0; column < table.columns; column += table.group) {
        if (column % block_columns == 0) {
            factors = codes;
            codes += head_bytes(table);
        }
        const std::int64_t columns = smaller(table.group, table.columns - column);
        const std::uint8_t* const scales = codes + octets_of(columns) * Codes::kOctetBytes;
        const std::uint8_t* const zeros = scales + scale_bytes(table);
        float scale[kPanelRows], minimum[kPanelRows] = {};
        for (int v = 0; v < kVectors; ++v) {
            store(scale + v * kLanes, load_scale<Scaling::kAny>(table, scales, factors, v));
            if (table.minima)
                store(minimum + v * kLanes, load_scale<Scaling::kAny>(table, zeros, factors + kFactorBytes, v));
        }
        const int zero = has_zeros(table) ? zeros[lane] : table.zero != nullptr ? *table.zero : 0;
        for (std::int64_t c = 0; c < columns; ++c) {
            const int code = Codes::at(codes, c, lane);
            const std::int64_t at = table.order != nullptr ? table.order[column + c] : column + c;
            out[at] = static_cast<float>(code - zero) * scale[lane] - minimum[lane];
        }
        codes = scales + tail_bytes(table);
    }
}
