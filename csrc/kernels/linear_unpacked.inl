// Products of many tokens with codes that share bytes (kInt6, kInt5). Included once, inside an unnamed namespace.
//
// The operations of each output are those of linear_codes.inl. A block of a panel is unpacked once for all tiles, a
// byte for each code, where the registers hold either the sums of a tile or what takes the codes apart.

constexpr bool kUnpackSplitCodes = kLanes == 8;
// From so many tokens on.
constexpr int kUnpackTokens = kPairedActivations ? 3 * kLargeTokens : 5;

struct UnpackedCodes : ByteCodes {
    using Sums = MediumProducts;
    static WINDLASS_INLINE void get(const std::uint8_t* run, std::int64_t j, int v, U8* quads) {
        const std::uint8_t* const octet = run + j * kOctetBytes + v * kLanes * 4;
        quads[0] = load_as<U8>(octet);
        quads[1] = load_as<U8>(octet + kQuadBytes);
    }
    static WINDLASS_INLINE std::int32_t bias(const PackedMatrix& matrix) { return *matrix.zero; }
};

// Of the unpacked codes of a block, whose records have at least 16 columns each, with all that stands between them.
constexpr std::size_t kUnpackedBytes =
    kActivationColumns * kPanelRows +
    (kActivationColumns / 16 * 2 * sizeof(float) + 2 * sizeof(std::uint16_t)) * kPanelRows;
static_assert(kLinearTokens * kPanelRows * sizeof(float) + kUnpackedBytes <=
              (kUnpackedFloats + kSumFloats) * sizeof(float));

// Writes the block of a panel that lies at `from` as it would be with a byte for each code, and returns its end.
template <typename Codes>
const std::uint8_t* unpack_block(const PackedMatrix& block, const std::uint8_t* from, std::uint8_t* to) {
    const auto copy = [&](std::int64_t bytes) {
        __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
        from += bytes;
        to += bytes;
    };
    copy(head_bytes(block));
    for (std::int64_t column = 0; column < block.columns; column += block.group) {
        const std::int64_t octets = octets_of(smaller(block.group, block.columns - column));
        for (std::int64_t piece = 0; piece < octets; piece += Codes::kOctets) {
#pragma GCC unroll 4
            for (int j = 0; j < Codes::kOctets; ++j, to += UnpackedCodes::kOctetBytes) {
                for (int v = 0; v < kVectors; ++v) {
                    U8 quads[2];
                    Codes::get(from, j, v, quads);
                    __builtin_memcpy(to + v * kLanes * 4, &quads[0], sizeof quads[0]);
                    __builtin_memcpy(to + kQuadBytes + v * kLanes * 4, &quads[1], sizeof quads[1]);
                }
            }
            from += Codes::kPieceBytes;
        }
        copy(tail_bytes(block));
    }
    return from;
}

// Adds the products of one tile with an unpacked block to sums [Tokens][kPanelRows].
template <Scaling kScaling, int Tokens>
void multiply_block(const PackedMatrix& block, const std::uint8_t* tile, float* sums) {
    constexpr int kTogether = kCodeVectors<Tokens>;
    for (int first = 0; first < kVectors; first += kTogether, sums += kTogether * kLanes) {
        F32 totals[Tokens][kTogether];
        for (int t = 0; t < Tokens; ++t) {
            for (int v = 0; v < kTogether; ++v) totals[t][v] = load(sums + t * kPanelRows + v * kLanes);
        }
        multiply_codes<UnpackedCodes, kScaling, Tokens, kTogether>(block, block.data, tile, first, Fetch{}, totals);
        for (int t = 0; t < Tokens; ++t) {
            for (int v = 0; v < kTogether; ++v) store(sums + t * kPanelRows + v * kLanes, totals[t][v]);
        }
    }
}

using MultiplyBlock = void (*)(const PackedMatrix&, const std::uint8_t*, float*);

template <Scaling kScaling, int Tokens>
MultiplyBlock block_function(int tokens) {
    if constexpr (Tokens > 1) {
        if (tokens < Tokens) return block_function<kScaling, Tokens - 1>(tokens);
    }
    return multiply_block<kScaling, Tokens>;
}

template <typename Codes, Scaling kScaling>
void linear_unpacked(const LinearJob& job) {
    constexpr int kTokens = UnpackedCodes::kTileTokens;
    const PackedMatrix& matrix = *job.matrix;
    const std::int64_t block_columns = matrix.group * matrix.block_records;
    float* const sums = job.scratch;  // [tokens][kPanelRows]
    std::uint8_t* const unpacked = reinterpret_cast<std::uint8_t*>(sums + kLinearTokens * kPanelRows);
    PackedMatrix block = matrix;
    block.data = unpacked;
    for (std::int64_t panel = job.panel_begin; panel < job.panel_end; ++panel) {
        __builtin_memset(sums, 0, static_cast<std::size_t>(job.tokens) * kPanelRows * sizeof(float));
        const std::uint8_t* codes = matrix.data + panel * matrix.panel_bytes;
        std::size_t before = 0;  // bytes that a tile has for each token before the block
        for (std::int64_t column = 0; column < matrix.columns; column += block_columns) {
            block.columns = smaller(block_columns, matrix.columns - column);
            const std::uint8_t* const end = unpack_block<Codes>(block, codes, unpacked);
            // The next one is needed when all tiles have been multiplied, and likely has as many bytes.
            for (std::int64_t byte = 0; byte < end - codes; byte += 64) __builtin_prefetch(end + byte, 0, 2);
            codes = end;
            const std::uint8_t* tile = job.tiles;
            for (int t = 0; t < job.tokens; t += kTokens, tile += job.tile_stride) {
                const int tokens = static_cast<int>(smaller(kTokens, job.tokens - t));
                block_function<kScaling, kTokens>(tokens)(block, tile + before * tokens, sums + t * kPanelRows);
            }
            before += tile_bytes(block, 1);
        }
        for (int t = 0; t < job.tokens; ++t) {
            F32 totals[kVectors];
            for (int v = 0; v < kVectors; ++v) totals[v] = load(sums + t * kPanelRows + v * kLanes);
            write_panel(job, panel, t, 0, kVectors, totals);
        }
    }
}

template <typename Codes>
void linear_split(const LinearJob& job) {
    if constexpr (kUnpackSplitCodes) {
        if (job.tokens >= kUnpackTokens) {
            return (is_plain(*job.matrix) ? linear_unpacked<Codes, Scaling::kPlain>
                                          : linear_unpacked<Codes, Scaling::kAny>)(job);
        }
    }
    linear_codes<Codes>(job);
}
