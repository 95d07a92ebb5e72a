#include "executor/weight.h"

#include <algorithm>
#include <cstring>

namespace windlass {
namespace {

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

PanelRows panel_rows(std::int64_t rows, std::int64_t panel) {
    return {panel * kPanelRows, std::min<std::int64_t>(kPanelRows, rows - panel * kPanelRows)};
}

// All columns, transposed: kPanelRows elements per column. Missing rows stay zero.
template <typename Element>
void pack_elements(const ArrayView& from, PanelRows rows, std::int64_t columns, std::uint8_t* to) {
    for (std::int64_t c = 0; c < columns; ++c) {
        for (std::int64_t r = 0; r < rows.count; ++r) {
            std::memcpy(to + (c * kPanelRows + r) * static_cast<std::int64_t>(sizeof(Element)),
                        from.at(rows.first + r, c), sizeof(Element));
        }
    }
}

constexpr std::int64_t kQuadBytes = kPanelRows * 4;

std::int64_t octets_of(std::int64_t columns) { return (columns + kOctet - 1) / kOctet; }

// The codes of one record, `count` columns from `column` on. What pads rows and columns stays zero.
void pack_bytes(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t r = 0; r < rows.count; ++r) {
        for (std::int64_t c = 0; c < count; ++c) {
            to[c / 4 * kQuadBytes + r * 4 + c % 4] = *from.at(rows.first + r, column + c);
        }
    }
}

void pack_nibbles(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t r = 0; r < rows.count; ++r) {
        for (std::int64_t c = 0; c < count; ++c) {
            const std::int64_t at = column + c;
            const std::uint8_t pair = *from.at(rows.first + r, at / 2);
            const int code = at % 2 == 0 ? pair & 0x0F : pair >> 4;
            to[c / kOctet * kQuadBytes + r * 4 + c % 4] |= static_cast<std::uint8_t>(c % kOctet < 4 ? code : code << 4);
        }
    }
}

// The columns of a record: all of a group, or an equal part of it.
std::int64_t record_columns(std::int64_t group, std::int64_t columns) {
    if (group <= kActivationColumns) return std::min(group, columns);
    if (group >= columns) return std::min<std::int64_t>(kActivationColumns, columns);
    std::int64_t part = kActivationColumns;
    while (group % part != 0) --part;
    return part;
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
    return source.scale_type == ScaleType::kNone ? pack_floats(source, pool) : pack_codes(source, pool);
}

Weight Weight::pack_floats(const SourceTensor& source, ThreadPool& pool) {
    Weight weight;
    PackedMatrix& matrix = weight.matrix_;
    matrix.format = source.format;
    matrix.rows = source.rows;
    matrix.columns = source.columns;
    matrix.panel_bytes = matrix.columns * kPanelRows * element_bytes(source.format);
    const std::int64_t panels = (matrix.rows - 1) / kPanelRows + 1;
    weight.memory_ = Mapping(static_cast<std::size_t>(panels * matrix.panel_bytes));
    std::uint8_t* const data = weight.memory_.data();
    matrix.data = data;
    pool.parallel_for(panels, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
            const PanelRows rows = panel_rows(matrix.rows, panel);
            std::uint8_t* const to = data + panel * matrix.panel_bytes;
            if (source.format == Format::kF32) {
                pack_elements<std::uint32_t>(source.data, rows, matrix.columns, to);
            } else {
                pack_elements<std::uint16_t>(source.data, rows, matrix.columns, to);
            }
        }
    });
    return weight;
}

Weight Weight::pack_codes(const SourceTensor& source, ThreadPool& pool) {
    Weight weight;
    PackedMatrix& matrix = weight.matrix_;
    matrix.format = source.format;
    matrix.scale_type = source.scale_type;
    matrix.rows = source.rows;
    matrix.columns = source.columns;
    matrix.group = record_columns(source.group, source.columns);
    matrix.block_records = std::max<std::int64_t>(1, kActivationColumns / matrix.group);
    const bool int4 = source.format == Format::kInt4;
    const bool own_zeros = int4 && !all_zeros_equal(source);
    const std::int64_t octet_bytes = int4 ? kQuadBytes : 2 * kQuadBytes;
    const std::int64_t scale_size = scale_bytes(source.scale_type);
    const std::int64_t after_codes = kPanelRows * (scale_size + (own_zeros ? 1 : 0));
    const std::int64_t records = (matrix.columns - 1) / matrix.group + 1;
    const std::int64_t last = matrix.columns - (records - 1) * matrix.group;
    matrix.panel_bytes =
        ((records - 1) * octets_of(matrix.group) + octets_of(last)) * octet_bytes + records * after_codes;
    const std::int64_t panels = (matrix.rows - 1) / kPanelRows + 1;

    weight.memory_ = Mapping(static_cast<std::size_t>(panels * matrix.panel_bytes + 1));
    std::uint8_t* const data = weight.memory_.data();
    matrix.data = data;
    if (int4 && !own_zeros) {
        data[panels * matrix.panel_bytes] = *source.zeros.at(0, 0);
        matrix.zero = data + panels * matrix.panel_bytes;
    }
    pool.parallel_for(panels, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
            const PanelRows rows = panel_rows(matrix.rows, panel);
            std::uint8_t* to = data + panel * matrix.panel_bytes;
            for (std::int64_t column = 0; column < matrix.columns; column += matrix.group) {
                const std::int64_t count = std::min(matrix.group, matrix.columns - column);
                const std::int64_t group = column / source.group;
                (int4 ? pack_nibbles : pack_bytes)(source.data, rows, column, count, to);
                to += octets_of(count) * octet_bytes;
                for (std::int64_t r = 0; r < rows.count; ++r) {
                    std::memcpy(to + r * scale_size, source.scales.at(rows.first + r, group),
                                static_cast<std::size_t>(scale_size));
                }
                to += kPanelRows * scale_size;
                if (!own_zeros) continue;
                for (std::int64_t r = 0; r < rows.count; ++r) to[r] = *source.zeros.at(rows.first + r, group);
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
