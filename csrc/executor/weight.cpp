#include "executor/weight.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

namespace windlass {
namespace {

// The largest zero point for which code - zero fits a signed byte.
constexpr int kLargestZero = 128;

std::int64_t element_bytes(Format format) {
    switch (format) {
        case Format::kF32:
            return 4;
        case Format::kF16:
        case Format::kBF16:
            return 2;
        default:
            return 1;
    }
}

std::int64_t scale_bytes(ScaleType type) { return type == ScaleType::kNone ? 0 : type == ScaleType::kF16 ? 2 : 4; }

// Rows of a panel that exist, and where the panel begins.
struct PanelRows {
    std::int64_t first;
    std::int64_t count;
};

// `count` columns from `column` on, transposed: kPanelRows elements per column. Missing rows stay zero.
template <typename Element>
void pack_elements(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t c = 0; c < count; ++c) {
        for (std::int64_t r = 0; r < rows.count; ++r) {
            std::memcpy(to + (c * kPanelRows + r) * static_cast<std::int64_t>(sizeof(Element)),
                        from.at(rows.first + r, column + c), sizeof(Element));
        }
    }
}

void pack_nibbles(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    constexpr std::int64_t kHalf = kPanelRows / 2;
    const auto code = [&](std::int64_t r, std::int64_t c) {
        const std::uint8_t pair = *from.at(rows.first + r, c / 2);
        return c % 2 == 0 ? pair & 0x0F : pair >> 4;
    };
    for (std::int64_t c = 0; c < count; ++c) {
        for (std::int64_t r = 0; r < std::min(rows.count, kHalf); ++r) {
            const int high = r + kHalf < rows.count ? code(r + kHalf, column + c) : 0;
            to[c * kHalf + r] = static_cast<std::uint8_t>(code(r, column + c) | high << 4);
        }
    }
}

void pack_codes(const SourceTensor& source, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    switch (source.format) {
        case Format::kF32:
            return pack_elements<std::uint32_t>(source.data, rows, column, count, to);
        case Format::kF16:
        case Format::kBF16:
            return pack_elements<std::uint16_t>(source.data, rows, column, count, to);
        case Format::kInt8:
            return pack_elements<std::uint8_t>(source.data, rows, column, count, to);
        case Format::kInt4:
            return pack_nibbles(source.data, rows, column, count, to);
    }
}

bool all_zeros_equal(const SourceTensor& source) {
    const std::int64_t groups = source.zeros.column_stride == 0 ? 1 : (source.columns - 1) / source.group + 1;
    const std::int64_t rows = source.zeros.row_stride == 0 ? 1 : source.rows;
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t g = 0; g < groups; ++g) {
            if (*source.zeros.at(r, g) != *source.zeros.at(0, 0)) return false;
        }
    }
    return true;
}

void check_zero(int zero) {
    if (zero > kLargestZero) throw std::invalid_argument("zero points above 128 are not supported");
}

float half_to_float(std::uint16_t half) {
    const std::uint32_t exponent = half >> 10 & 0x1F, mantissa = half & 0x3FF;
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    std::uint32_t bits = 0;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
        std::memcpy(&bits, &magnitude, sizeof bits);
    } else {
        bits = (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | mantissa << 13;
    }
    bits |= sign;
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

Weight Weight::pack_matrix(const SourceTensor& source, ThreadPool& pool) {
    Weight weight;
    PackedMatrix& matrix = weight.matrix_;
    matrix.format = source.format;
    matrix.scale_type = source.scale_type;
    matrix.rows = source.rows;
    matrix.columns = source.columns;
    const bool grouped = source.scale_type != ScaleType::kNone;
    matrix.group = std::min(grouped ? source.group : std::int64_t{kBlockColumns}, source.columns);
    const bool int4 = source.format == Format::kInt4;
    const bool own_zeros = int4 && !all_zeros_equal(source);
    matrix.column_bytes = int4 ? kPanelRows / 2 : kPanelRows * element_bytes(source.format);
    const std::int64_t after_codes = kPanelRows * (scale_bytes(source.scale_type) + (own_zeros ? 1 : 0));
    matrix.record_bytes = matrix.group * matrix.column_bytes + after_codes;
    const std::int64_t records = (matrix.columns - 1) / matrix.group + 1;
    matrix.panel_bytes = matrix.columns * matrix.column_bytes + records * after_codes;
    const std::int64_t panels = (matrix.rows - 1) / kPanelRows + 1;

    weight.memory_ = Mapping(static_cast<std::size_t>(panels * matrix.panel_bytes + kPanelRows));
    std::uint8_t* const data = weight.memory_.data();
    matrix.data = data;
    if (int4 && !own_zeros) {
        const std::uint8_t zero = *source.zeros.at(0, 0);
        check_zero(zero);
        std::memset(data + panels * matrix.panel_bytes, zero, kPanelRows);
        matrix.zeros = data + panels * matrix.panel_bytes;
    }
    const std::int64_t scale_size = scale_bytes(source.scale_type);
    pool.parallel_for(panels, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
            const PanelRows rows = {panel * kPanelRows,
                                    std::min<std::int64_t>(kPanelRows, matrix.rows - panel * kPanelRows)};
            std::uint8_t* to = data + panel * matrix.panel_bytes;
            for (std::int64_t record = 0; record < records; ++record) {
                const std::int64_t column = record * matrix.group;
                const std::int64_t count = std::min(matrix.group, matrix.columns - column);
                pack_codes(source, rows, column, count, to);
                to += count * matrix.column_bytes;
                if (!grouped) continue;
                for (std::int64_t r = 0; r < rows.count; ++r) {
                    std::memcpy(to + r * scale_size, source.scales.at(rows.first + r, record),
                                static_cast<std::size_t>(scale_size));
                }
                to += kPanelRows * scale_size;
                if (!own_zeros) continue;
                for (std::int64_t r = 0; r < rows.count; ++r) {
                    to[r] = *source.zeros.at(rows.first + r, record);
                    check_zero(to[r]);
                }
                to += kPanelRows;
            }
        }
    });
    return weight;
}

Weight Weight::pack_vector(const SourceTensor& source) {
    Weight weight;
    weight.memory_ = Mapping(static_cast<std::size_t>(source.columns) * sizeof(float));
    float* const to = weight.memory_.floats();
    for (std::int64_t c = 0; c < source.columns; ++c) {
        const std::uint8_t* const from = source.data.at(0, c);
        std::uint16_t half = 0;
        if (source.format == Format::kF32) {
            std::memcpy(to + c, from, sizeof(float));
            continue;
        }
        std::memcpy(&half, from, sizeof half);
        if (source.format == Format::kF16) {
            to[c] = half_to_float(half);
        } else {
            const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
            std::memcpy(to + c, &bits, sizeof bits);
        }
    }
    return weight;
}

}  // namespace windlass
