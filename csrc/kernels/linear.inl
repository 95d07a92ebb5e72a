// Matrix products and table lookups by weight format. Included once, inside an unnamed namespace.

void linear(const LinearJob& job) {
    switch (job.matrix->format) {
        case Format::kF32:
            return linear_float<F32Source>(job);
        case Format::kF16:
            return linear_float<F16Source>(job);
        case Format::kBF16:
            return linear_float<BF16Source>(job);
        case Format::kInt8:
            return linear_codes<ByteCodes>(job);
        case Format::kInt4:
            return linear_codes<NibbleCodes>(job);
        case Format::kFp8:
            return linear_float<Fp8Source>(job);
        case Format::kInt6:
            return linear_split<SplitCodes<SixBits>>(job);
        case Format::kInt5:
            return linear_split<SplitCodes<FiveBits>>(job);
    }
}

// One row of a float table. Elements of a row lie kPanelRows apart.
template <typename Source>
void embed_float(const PackedMatrix& table, std::int64_t row, float* out) {
    using Element = typename Source::Element;
    const std::int64_t panel = row / kPanelRows, lane = row % kPanelRows;
    for (std::int64_t begin = 0; begin < table.columns; begin += kBlockColumns) {
        const Block<Source> block = block_of<Source>(table, panel, begin);
        const std::int64_t end = smaller(kBlockColumns, table.columns - begin);
        for (std::int64_t c = 0; c < end; c += kLanes) {
            Element elements[kLanes] = {};
            const std::int64_t count = smaller(kLanes, end - c);
            for (std::int64_t i = 0; i < count; ++i) elements[i] = block.elements[(c + i) * kPanelRows + lane];
            F32 numbers = Source::get(elements);
            if constexpr (Source::kScaled) numbers *= splat(block.scales[lane] * Source::kUnit);
            store_part(out + begin + c, numbers, count);
        }
    }
}

void embed(const PackedMatrix& table, std::int64_t row, float* out) {
    switch (table.format) {
        case Format::kF32:
            return embed_float<F32Source>(table, row, out);
        case Format::kF16:
            return embed_float<F16Source>(table, row, out);
        case Format::kBF16:
            return embed_float<BF16Source>(table, row, out);
        case Format::kInt8:
            return embed_codes<ByteCodes>(table, row, out);
        case Format::kInt4:
            return embed_codes<NibbleCodes>(table, row, out);
        case Format::kFp8:
            return embed_float<Fp8Source>(table, row, out);
        case Format::kInt6:
            return embed_codes<SplitCodes<SixBits>>(table, row, out);
        case Format::kInt5:
            return embed_codes<SplitCodes<FiveBits>>(table, row, out);
    }
}
