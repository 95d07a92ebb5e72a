#include "executor/weight.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "runtime/half.h"
#include "runtime/hash.h"

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

std::int64_t scale_bytes(ScaleType type) {
    switch (type) {
        case ScaleType::kNone:
            return 0;
        case ScaleType::kF16:
            return 2;
        case ScaleType::kF32:
            return 4;
        default:
            return 1;
    }
}

constexpr std::int64_t kFactorBytes = 2;

// What stands before the records of an activation block, and behind the codes of a record.
std::int64_t block_head_bytes(const WeightLayout& layout) {
    return layout.scale_type == ScaleType::kProduct ? kPanelRows * kFactorBytes * (layout.minima ? 2 : 1) : 0;
}
std::int64_t record_tail_bytes(const WeightLayout& layout) {
    return kPanelRows * (scale_bytes(layout.scale_type) * (layout.minima ? 2 : 1) + (layout.own_zeros ? 1 : 0));
}
std::int64_t order_bytes(const WeightLayout& layout) {
    return layout.ordered ? layout.columns * static_cast<std::int64_t>(sizeof(std::int32_t)) : 0;
}
// Columns whose codes share bytes in a way that needs all of them.
std::int64_t piece_columns(Format format) { return format == Format::kInt6 ? 16 : format == Format::kInt5 ? 32 : 1; }
bool has_pieces(Format format) { return piece_columns(format) > 1; }

bool shares_zero(const WeightLayout& layout) {
    return has_pieces(layout.format) || (layout.format == Format::kInt4 && !layout.own_zeros && !layout.minima);
}

std::int64_t octet_bytes(Format format) {
    const int bits = format == Format::kInt8 ? 8 : format == Format::kInt6 ? 6 : format == Format::kInt5 ? 5 : 4;
    return kPanelRows * kOctet * bits / 8;
}

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

std::int64_t octets_of(std::int64_t columns) { return (columns + kOctet - 1) / kOctet; }

// The codes of one record, `count` columns from `column` on. What pads rows and columns stays zero.
void pack_bytes(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t r = 0; r < rows.count; ++r) {
        for (std::int64_t c = 0; c < count; ++c) {
            to[c / 4 * kQuadBytes + r * 4 + c % 4] = *from.at(rows.first + r, column + c);
        }
    }
}

// The nibbles of the low half of a word, one to a byte.
std::uint32_t spread_nibbles(std::uint32_t half) {
    half = (half | half << 8) & 0x00FF00FF;
    return (half | half << 4) & 0x0F0F0F0F;
}

void pack_octets(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t r = 0; r < rows.count; ++r) {
        const std::uint8_t* const row = from.at(rows.first + r, column / 2);
        for (std::int64_t octet = 0; octet < count / kOctet; ++octet) {
            const std::uint8_t* const b = row + octet * 4;
            const std::uint32_t first = b[0] | static_cast<std::uint32_t>(b[1]) << 8;
            const std::uint32_t second = b[2] | static_cast<std::uint32_t>(b[3]) << 8;
            const std::uint32_t quad = spread_nibbles(first) | spread_nibbles(second) << 4;
            std::uint8_t* const out = to + octet * kQuadBytes + r * 4;
            for (int i = 0; i < 4; ++i) out[i] = static_cast<std::uint8_t>(quad >> 8 * i);
        }
    }
}

void pack_nibbles(const ArrayView& from, PanelRows rows, std::int64_t column, std::int64_t count, std::uint8_t* to) {
    if (from.column_stride == 1 && column % 2 == 0 && count % kOctet == 0) {
        pack_octets(from, rows, column, count, to);
        return;
    }
    for (std::int64_t r = 0; r < rows.count; ++r) {
        for (std::int64_t c = 0; c < count; ++c) {
            const std::int64_t at = column + c;
            const std::uint8_t pair = *from.at(rows.first + r, at / 2);
            const int code = at % 2 == 0 ? pair & 0x0F : pair >> 4;
            to[c / kOctet * kQuadBytes + r * 4 + c % 4] |= static_cast<std::uint8_t>(c % kOctet < 4 ? code : code << 4);
        }
    }
}

// Puts the code of a column into its piece of kInt6 or kInt5 at `to`; q is its quad.
void put_code(Format format, int code, std::int64_t q, std::uint8_t* to) {
    const auto put = [&](std::int64_t part, int bits, int left) {
        to[part * kQuadBytes] |= static_cast<std::uint8_t>(bits << left);
    };
    if (format == Format::kInt6) {
        if (q < 3) return put(q, code, 0);
        for (int part = 0; part < 3; ++part) put(part, code >> 2 * part & 3, 6);
    } else if (q < 5) {
        put(q, code, 0);
    } else {
        put(2 * q - 10, code & 7, 5);
        if (q < 7) return put(2 * q - 9, code >> 3, 6);
        put(1, code >> 3 & 1, 5);
        put(3, code >> 4, 5);
    }
}

// Codes with `zero` added, in whole pieces.
void pack_pieces(const ArrayView& from, Format format, std::uint8_t zero, PanelRows rows, std::int64_t column,
                 std::int64_t count, std::uint8_t* to) {
    const std::int64_t columns = piece_columns(format), bytes = columns / kOctet * octet_bytes(format);
    for (std::int64_t r = 0; r < rows.count; ++r) {
        for (std::int64_t c = 0; c < count; ++c) {
            const int code = static_cast<std::uint8_t>(*from.at(rows.first + r, column + c) + zero);
            put_code(format, code, c % columns / 4, to + c / columns * bytes + r * 4 + c % 4);
        }
    }
}

struct CodeRange {
    int least = 0;
    int most = 0;
    int count() const { return most - least + 1; }
};

// The codes of an int8 matrix, 0 always among them.
CodeRange code_range(const SourceTensor& source) {
    CodeRange range;
    for (std::int64_t r = 0; r < source.rows && range.count() <= 64; ++r) {
        for (std::int64_t c = 0; c < source.columns; ++c) {
            const int code = static_cast<std::int8_t>(*source.data.at(r, c));
            range.least = std::min(range.least, code);
            range.most = std::max(range.most, code);
        }
    }
    return range;
}

// The format with the fewest bits that an int8 matrix with such codes can have.
Format compact_format(const CodeRange& range, std::int64_t record, std::int64_t columns) {
    for (const Format format : {Format::kInt5, Format::kInt6}) {
        const std::int64_t piece = piece_columns(format);
        const int most = format == Format::kInt5 ? 32 : 64;
        if (range.count() <= most && record % piece == 0 && columns % piece == 0) return format;
    }
    return Format::kInt8;
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

}  // namespace

Weight Weight::pack_matrix(const SourceTensor& source, ThreadPool& pool) {
    if (source.format == Format::kFp8) return pack_fp8(source, pool);
    return source.scale_type == ScaleType::kNone ? pack_floats(source, pool) : pack_codes(source, pool);
}

bool WeightLayout::possible() const {
    if (rows < 1 || columns < 1 || format < Format::kF32 || format > Format::kInt5) return false;
    if (is_vector || format < Format::kInt8 || format == Format::kFp8) {
        const bool group_fits = format == Format::kFp8 && !is_vector
                                    ? group >= 1 && group <= columns && (group % kBlockColumns == 0 || group == columns)
                                    : group == 0;
        return scale_type == ScaleType::kNone && group_fits && !own_zeros && !minima && !ordered &&
               (!is_vector || (rows == 1 && format == Format::kF32));
    }
    if (scale_type <= ScaleType::kNone || scale_type > ScaleType::kProduct) return false;
    if (group < 1 || group > kActivationColumns || group > columns) return false;
    if (scale_type == ScaleType::kProduct && kActivationColumns % group != 0) return false;
    if (group % piece_columns(format) != 0 || columns % piece_columns(format) != 0) return false;
    return !own_zeros || (format == Format::kInt4 && !minima);
}

std::int64_t WeightLayout::bytes() const {
    // No element takes more than 8 bytes, with its share of the scales more than 20, with the padding more than 640.
    if (static_cast<double>(rows) * static_cast<double>(columns) > 0x1p50) return 0;
    if (is_vector) return columns * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t panels = (rows - 1) / kPanelRows + 1;
    return panels * matrix(nullptr).panel_bytes + order_bytes(*this) + (shares_zero(*this) ? 1 : 0);
}

PackedMatrix WeightLayout::matrix(const std::uint8_t* data) const {
    PackedMatrix matrix = {};
    matrix.data = data;
    matrix.format = format;
    matrix.scale_type = scale_type;
    matrix.rows = rows;
    matrix.columns = columns;
    if (scale_type == ScaleType::kNone) {
        matrix.panel_bytes = columns * kPanelRows * element_bytes(format);
        matrix.group = group;
        if (group > 0) matrix.panel_bytes += ((columns - 1) / group + 1) * kPanelRows * scale_bytes(ScaleType::kF32);
        return matrix;
    }
    matrix.group = group;
    matrix.minima = minima;
    matrix.block_records = std::max<std::int64_t>(1, kActivationColumns / group);
    const std::int64_t records = (columns - 1) / group + 1;
    const std::int64_t last = columns - (records - 1) * group;
    const std::int64_t blocks = (records - 1) / matrix.block_records + 1;
    matrix.panel_bytes = ((records - 1) * octets_of(group) + octets_of(last)) * octet_bytes(format) +
                         records * record_tail_bytes(*this) + blocks * block_head_bytes(*this);
    if (data == nullptr) return matrix;
    const std::uint8_t* const after = data + ((rows - 1) / kPanelRows + 1) * matrix.panel_bytes;
    if (ordered) matrix.order = reinterpret_cast<const std::int32_t*>(after);
    if (shares_zero(*this)) matrix.zero = after + order_bytes(*this);
    return matrix;
}

bool WeightLayout::order_fits(const std::uint8_t* data) const {
    if (!ordered) return true;
    const std::int32_t* const order = matrix(data).order;
    return std::all_of(order, order + columns, [&](std::int32_t column) { return column >= 0 && column < columns; });
}

Weight Weight::borrow(const WeightLayout& layout, const std::uint8_t* data) {
    Weight weight;
    weight.layout_ = layout;
    weight.data_ = data;
    weight.bytes_ = layout.bytes();
    if (!layout.is_vector) weight.matrix_ = layout.matrix(data);
    return weight;
}

Weight Weight::reserve(const WeightLayout& layout) {
    const std::int64_t bytes = layout.bytes();
    if (bytes == 0) throw std::bad_alloc();
    Mapping memory(static_cast<std::size_t>(bytes));
    Weight weight = borrow(layout, memory.data());
    weight.memory_ = std::move(memory);
    return weight;
}

Weight Weight::pack_floats(const SourceTensor& source, ThreadPool& pool) {
    WeightLayout layout;
    layout.format = source.format;
    layout.rows = source.rows;
    layout.columns = source.columns;
    Weight weight = reserve(layout);
    const PackedMatrix& matrix = weight.matrix_;
    std::uint8_t* const data = weight.memory_.data();
    pool.parallel_for((matrix.rows - 1) / kPanelRows + 1, 1, [&](int, std::int64_t begin, std::int64_t end) {
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
    const bool int4 = source.format == Format::kInt4;
    WeightLayout layout;
    layout.format = source.format;
    layout.scale_type = source.scale_type;
    layout.minima = source.has_minima;
    layout.own_zeros = int4 && !source.has_minima && !all_zeros_equal(source);
    layout.ordered = source.order != nullptr;
    layout.rows = source.rows;
    layout.columns = source.columns;
    layout.group = record_columns(source.group, source.columns);
    std::uint8_t zero = 0;
    if (int4) {
        if (!source.has_minima) zero = *source.zeros.at(0, 0);
    } else {
        const CodeRange range = code_range(source);
        layout.format = compact_format(range, layout.group, layout.columns);
        zero = static_cast<std::uint8_t>(-range.least);
    }
    Weight weight = reserve(layout);
    const PackedMatrix& matrix = weight.matrix_;
    std::uint8_t* const data = weight.memory_.data();
    const std::int64_t panels = (matrix.rows - 1) / kPanelRows + 1;
    std::uint8_t* const after = data + panels * matrix.panel_bytes;
    if (layout.ordered) std::memcpy(after, source.order, static_cast<std::size_t>(order_bytes(layout)));
    if (matrix.zero != nullptr) after[order_bytes(layout)] = zero;
    const std::int64_t scale_size = scale_bytes(source.scale_type);
    const std::int64_t block_columns = matrix.group * matrix.block_records;
    pool.parallel_for(panels, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
            const PanelRows rows = panel_rows(matrix.rows, panel);
            std::uint8_t* to = data + panel * matrix.panel_bytes;
            const auto put = [&](const ArrayView& from, std::int64_t column, std::int64_t size) {
                for (std::int64_t r = 0; r < rows.count; ++r) {
                    std::memcpy(to + r * size, from.at(rows.first + r, column), static_cast<std::size_t>(size));
                }
                to += kPanelRows * size;
            };
            for (std::int64_t column = 0; column < matrix.columns; column += matrix.group) {
                const std::int64_t count = std::min(matrix.group, matrix.columns - column);
                const std::int64_t group = column / source.group;
                if (source.scale_type == ScaleType::kProduct && column % block_columns == 0) {
                    put(source.scale_factors, column / source.superblock, kFactorBytes);
                    if (layout.minima) put(source.minimum_factors, column / source.superblock, kFactorBytes);
                }
                if (has_pieces(layout.format)) {
                    pack_pieces(source.data, layout.format, zero, rows, column, count, to);
                } else {
                    (int4 ? pack_nibbles : pack_bytes)(source.data, rows, column, count, to);
                }
                to += octets_of(count) * octet_bytes(layout.format);
                put(source.scales, group, scale_size);
                if (layout.minima) put(source.minima, group, scale_size);
                if (layout.own_zeros) put(source.zeros, group, 1);
            }
        }
    });
    return weight;
}

Weight Weight::pack_fp8(const SourceTensor& source, ThreadPool& pool) {
    WeightLayout layout;
    layout.format = source.format;
    layout.rows = source.rows;
    layout.columns = source.columns;
    layout.group = std::min(source.group, source.columns);
    Weight weight = reserve(layout);
    const PackedMatrix& matrix = weight.matrix_;
    std::uint8_t* const data = weight.memory_.data();
    pool.parallel_for((matrix.rows - 1) / kPanelRows + 1, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
            const PanelRows rows = panel_rows(matrix.rows, panel);
            std::uint8_t* to = data + panel * matrix.panel_bytes;
            for (std::int64_t column = 0; column < matrix.columns; column += matrix.group) {
                ArrayView codes = source.data;
                codes.data += column * codes.column_stride;
                const std::int64_t count = std::min(matrix.group, matrix.columns - column);
                for (std::int64_t r = 0; r < rows.count; ++r) {
                    std::memcpy(to + r * sizeof(float), source.scales.at(rows.first + r, column / matrix.group),
                                sizeof(float));
                }
                to += kPanelRows * sizeof(float);
                pack_elements<std::uint8_t>(codes, rows, count, to);
                to += count * kPanelRows;
            }
        }
    });
    return weight;
}

Weight Weight::pack_vector(const SourceTensor& source) {
    WeightLayout layout;
    layout.is_vector = true;
    layout.rows = 1;
    layout.columns = source.columns;
    Weight weight = reserve(layout);
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

std::uint64_t packing_fingerprint() {
    constexpr std::int64_t kRows = kPanelRows + 3, kColumns = 328, kWholeColumns = 320;
    std::vector<std::uint8_t> numbers(kRows * kColumns * sizeof(float));
    std::uint32_t state = 1;
    for (std::uint8_t& number : numbers)
        number = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    ThreadPool alone(1);
    std::uint64_t hash = kHashStart;
    const std::vector<std::int32_t> order(kColumns, 1);
    const auto add = [&](Format format, std::int64_t group, ScaleType scale_type, bool one_zero, bool minima = false,
                         bool ordered = false, std::uint8_t mask = 0xFF) {
        std::vector<std::uint8_t> masked = numbers;
        for (std::uint8_t& number : masked) number &= mask;
        const std::int64_t item = element_bytes(format);
        const std::int64_t size = scale_bytes(format == Format::kFp8 ? ScaleType::kF32 : scale_type);
        const std::int64_t width = format == Format::kInt4 ? (kColumns + 1) / 2 : kColumns * item;
        SourceTensor source;
        source.format = format;
        source.rows = kRows;
        source.columns = mask == 0xFF ? kColumns : kWholeColumns;
        source.data = {masked.data(), width, item};
        source.group = group;
        source.scale_type = scale_type;
        source.scales = source.minima = {numbers.data(), kColumns * size, size};
        source.zeros = {numbers.data(), one_zero ? 0 : kColumns, one_zero ? 0 : 1};
        source.has_minima = minima;
        source.order = ordered ? order.data() : nullptr;
        source.superblock = 2 * kActivationColumns;
        source.scale_factors = source.minimum_factors = {numbers.data(), kColumns, kFactorBytes};
        const Weight weight = Weight::pack_matrix(source, alone);
        hash = hash_bytes(weight.data(), weight.bytes(), hash);
    };
    for (const Format format : {Format::kF32, Format::kF16}) add(format, 0, ScaleType::kNone, true);
    for (const std::int64_t group : {32, 40, 256, 1 << 20}) {
        add(Format::kInt4, group, ScaleType::kF16, true);
        add(Format::kInt4, group, ScaleType::kF32, false);
        add(Format::kInt8, group, ScaleType::kF32, true);
    }
    for (const Format format : {Format::kInt8, Format::kInt4}) {
        add(format, 32, ScaleType::kF32, true, true);
        add(format, 16, ScaleType::kProduct, true);
        add(format, 16, ScaleType::kProduct, true, true);
        add(format, 32, ScaleType::kF32, true, false, true);
    }
    // Codes few enough for kInt6 and kInt5.
    for (const std::uint8_t mask : {std::uint8_t{63}, std::uint8_t{31}})
        add(Format::kInt8, 32, ScaleType::kF16, true, false, false, mask);
    for (const std::int64_t group : {kBlockColumns, 1 << 20}) add(Format::kFp8, group, ScaleType::kNone, true);
    return hash;
}

}  // namespace windlass
