// Checks every function of every kernel table that this processor can run against plain scalar code in exact integers
// and doubles. Needs no Python, so that it also runs in an emulator (scripts/aarch64) and under sanitizers
// (scripts/sanitize). Exits with 1 at the first mismatch, and says where.
#include "tests/kernels.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "executor/weight.h"
#include "kernels/dispatch.h"

namespace windlass {
namespace {

struct Shape {
    std::int64_t rows, columns, group;
};

struct Kind {
    const char* name;
    Format format;
    ScaleType scales = ScaleType::kNone;
    bool own_zeros = false;
    bool minima = false;
    bool ordered = false;
    int int8_codes = 256;

    // How a matrix lies in memory.
    Format packed(const Shape& shape) const {
        const auto whole = [&](int columns) {
            return shape.columns % columns == 0 && (shape.group >= shape.columns || shape.group % columns == 0);
        };
        if (format != Format::kInt8) return format;
        if (int8_codes <= 32 && whole(32)) return Format::kInt5;
        return int8_codes <= 64 && whole(16) ? Format::kInt6 : format;
    }
    bool codes() const { return scales != ScaleType::kNone; }
    bool allows(const Shape& shape) const {
        if (format == Format::kFp8) return shape.group % kBlockColumns == 0 || shape.group >= shape.columns;
        return scales != ScaleType::kProduct || kActivationColumns % std::min(shape.group, shape.columns) == 0;
    }
};
constexpr Kind kKinds[] = {
    {"f32", Format::kF32},
    {"f16", Format::kF16},
    {"bf16", Format::kBF16},
    {"int8, f16 scales", Format::kInt8, ScaleType::kF16},
    {"int8, f32 scales", Format::kInt8, ScaleType::kF32},
    {"int4, f16 scales", Format::kInt4, ScaleType::kF16},
    {"int4, f32 scales", Format::kInt4, ScaleType::kF32},
    {"int4, f16 scales and own zeros", Format::kInt4, ScaleType::kF16, true},
    {"int4, f32 scales and own zeros", Format::kInt4, ScaleType::kF32, true},
    {"int4, f16 scales and minima", Format::kInt4, ScaleType::kF16, false, true},
    {"int8, f32 scales and minima", Format::kInt8, ScaleType::kF32, false, true},
    {"int8, products as scales", Format::kInt8, ScaleType::kProduct},
    {"int4, products as scales", Format::kInt4, ScaleType::kProduct, true},
    {"int8, products as scales and minima", Format::kInt8, ScaleType::kProduct, false, true},
    {"int4, products as scales and minima", Format::kInt4, ScaleType::kProduct, false, true},
    {"int8, ordered", Format::kInt8, ScaleType::kF32, false, false, true},
    {"int4, own zeros, ordered", Format::kInt4, ScaleType::kF16, true, false, true},
    {"fp8", Format::kFp8},
    {"int6, f16 scales", Format::kInt8, ScaleType::kF16, false, false, false, 64},
    {"int6, f32 scales and minima", Format::kInt8, ScaleType::kF32, false, true, false, 64},
    {"int6, products as scales", Format::kInt8, ScaleType::kProduct, false, false, true, 64},
    {"int5, f16 scales", Format::kInt8, ScaleType::kF16, false, false, true, 32},
    {"int5, products as scales and minima", Format::kInt8, ScaleType::kProduct, false, true, false, 32}};
constexpr Shape kShapes[] = {{1, 1, 32},      {31, 7, 32},    {32, 32, 32},   {33, 40, 32},   {64, 256, 64},
                             {97, 129, 64},   {40, 300, 128}, {33, 300, 300}, {65, 200, 40},  {34, 520, 256},
                             {100, 300, 100}, {35, 37, 9},    {70, 400, 16},  {65, 352, 256}, {33, 144, 48}};

// kIdentity shows the activations themselves, kLargest makes sums of products as large as they can be.
enum class Fill { kRandom, kIdentity, kLargest };

struct Matrix {
    Weight packed;
    Doubles values;  // [rows][columns]
    Doubles sizes;   // what the values are differences of

    const PackedMatrix& matrix() const { return packed.matrix(); }
};

Matrix make_floats(const Kind& kind, const Shape& shape, bool every_half, ThreadPool& pool) {
    Matrix result;
    const std::int64_t size = kind.format == Format::kF32 ? 4 : 2;
    Bytes data;
    for (std::int64_t i = 0; i < shape.rows * shape.columns; ++i) {
        float value = random_floats(1, 1)[0];
        const std::uint32_t exponent =
            static_cast<std::uint32_t>(kind.format == Format::kF16 ? below(18) << 10 : 0x3F00);
        const std::uint16_t half = static_cast<std::uint16_t>(every_half ? i : (generator() & 0x83FF) ^ exponent);
        if (kind.format != Format::kF32) value = half_value(kind.format, half);
        const std::uint8_t* const from =
            size == 4 ? reinterpret_cast<const std::uint8_t*>(&value) : reinterpret_cast<const std::uint8_t*>(&half);
        data.insert(data.end(), from, from + size);
        result.values.push_back(value);
        result.sizes.push_back(std::abs(value));
    }
    SourceTensor source;
    source.format = kind.format;
    source.rows = shape.rows;
    source.columns = shape.columns;
    source.data = {data.data(), shape.columns * size, size};
    result.packed = Weight::pack_matrix(source, pool);
    return result;
}

// Numbers of one group each, such as scales, as a source has them.
struct GroupNumbers {
    Floats values;
    std::vector<std::uint16_t> halves;
    Bytes codes;  // kProduct
    std::vector<std::uint16_t> factors;

    ArrayView view(ScaleType type, std::int64_t groups) const {
        if (type == ScaleType::kProduct) return {codes.data(), groups, 1};
        if (type == ScaleType::kF16) return {reinterpret_cast<const std::uint8_t*>(halves.data()), groups * 2, 2};
        return {reinterpret_cast<const std::uint8_t*>(values.data()), groups * 4, 4};
    }
    void add_zeros(std::int64_t groups, std::int64_t blocks) {
        values.resize(values.size() + groups);
        halves.resize(halves.size() + groups);
        codes.resize(codes.size() + groups);
        factors.resize(factors.size() + blocks);
    }
    ArrayView factor_view(std::int64_t blocks) const {
        return {reinterpret_cast<const std::uint8_t*>(factors.data()), blocks * 2, 2};
    }
};

constexpr std::int64_t kSuperblock = 2 * kActivationColumns;

// All `same`, 0 or 1, or random.
GroupNumbers make_numbers(ScaleType type, const Shape& shape, std::optional<int> same) {
    const std::int64_t groups = (shape.columns - 1) / shape.group + 1, blocks = (shape.columns - 1) / kSuperblock + 1;
    GroupNumbers result;
    for (std::int64_t i = 0; i < shape.rows * blocks; ++i) {
        result.factors.push_back(same ? 0x3C00 : static_cast<std::uint16_t>(generator() & 0xBFFF));
    }
    for (std::int64_t i = 0; i < shape.rows * groups; ++i) {
        const std::uint16_t half =
            same ? static_cast<std::uint16_t>(*same * 0x3C00) : static_cast<std::uint16_t>(generator() & 0xBFFF);
        const int code = same ? *same : static_cast<int>(below(256)) - 128;
        const std::int64_t block = i / groups * blocks + i % groups * shape.group / kSuperblock;
        result.halves.push_back(half);
        result.codes.push_back(static_cast<std::uint8_t>(code));
        const float value = half_value(Format::kF16, half);
        result.values.push_back(type == ScaleType::kProduct
                                    ? static_cast<float>(code) * half_value(Format::kF16, result.factors[block])
                                : type == ScaleType::kF16 || same ? value
                                                                  : value * 0.7F);
    }
    return result;
}

// Every code in turn, or random ones; none is a NaN.
Matrix make_fp8(const Shape& shape, bool every_code, ThreadPool& pool) {
    const std::int64_t groups = (shape.columns - 1) / shape.group + 1;
    Floats scales = random_floats(shape.rows * groups, 1);
    if (every_code) std::fill(scales.begin(), scales.end(), 1.0F);
    Matrix result;
    Bytes data;
    for (std::int64_t i = 0; i < shape.rows * shape.columns; ++i) {
        std::uint8_t code = static_cast<std::uint8_t>(every_code ? i : below(256));
        if ((code & 0x7F) == 0x7F) code = 0;
        const int exponent = code >> 3 & 15, fraction = code & 7;
        const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                              : std::ldexp(static_cast<float>(fraction + 8), exponent - 10);
        const float scale = scales[i / shape.columns * groups + i % shape.columns / shape.group];
        data.push_back(code);
        result.values.push_back((code >> 7 != 0 ? -magnitude : magnitude) * scale);
        result.sizes.push_back(std::abs(result.values.back()));
    }
    SourceTensor source;
    source.format = Format::kFp8;
    source.rows = shape.rows;
    source.columns = shape.columns;
    source.group = shape.group;
    source.data = {data.data(), shape.columns, 1};
    source.scales = {reinterpret_cast<const std::uint8_t*>(scales.data()), groups * 4, 4};
    result.packed = Weight::pack_matrix(source, pool);
    return result;
}

int largest_code(const Kind& kind, std::int64_t at) {
    if (kind.format == Format::kInt4) return 15;
    const int least = -kind.int8_codes / 2;
    return kind.int8_codes == 256 || at == 0 ? least : -least - 1;
}

// With `range`, int8 has a row more, of zeros, whose codes are the least and the greatest of so many.
Matrix make_codes(const Kind& kind, const Shape& shape, Fill fill, int range, ThreadPool& pool) {
    const auto [rows, columns, group] = shape;
    const bool int4 = kind.format == Format::kInt4;
    const std::int64_t groups = (columns - 1) / group + 1, row_bytes = int4 ? (columns + 1) / 2 : columns;
    const std::int64_t blocks = (columns - 1) / kSuperblock + 1;
    const std::uint8_t shared_zero = static_cast<std::uint8_t>(below(15));
    const bool identity = fill == Fill::kIdentity;
    GroupNumbers scales = make_numbers(kind.scales, shape, identity ? std::optional(1) : std::nullopt);
    GroupNumbers minima = make_numbers(kind.scales, shape, identity ? std::optional(0) : std::nullopt);
    Bytes data(rows * row_bytes), zeros(rows * groups);
    for (std::uint8_t& zero : zeros) zero = kind.own_zeros ? static_cast<std::uint8_t>(below(15)) : shared_zero;
    std::vector<std::int32_t> order(columns);
    std::iota(order.begin(), order.end(), 0);
    if (kind.ordered) std::shuffle(order.begin(), order.end(), generator);
    Matrix result;
    result.values.resize(rows * columns);
    result.sizes.resize(rows * columns);
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
            const std::int64_t at = r * columns + order[c];
            const std::int64_t own = r * groups + c / group;
            const int zero = int4 && !kind.minima ? zeros[own] : 0;
            const int code = identity                 ? zero + (r == order[c] ? 1 : 0)
                             : fill == Fill::kLargest ? largest_code(kind, at)
                             : int4                   ? static_cast<int>(below(16))
                                                      : static_cast<int>(below(kind.int8_codes)) - kind.int8_codes / 2;
            std::uint8_t& byte = data[r * row_bytes + (int4 ? c / 2 : c)];
            byte = static_cast<std::uint8_t>(int4 && c % 2 == 1 ? byte | code << 4 : code);
            const float product = static_cast<float>(code - zero) * scales.values[own];
            const float minimum = kind.minima ? minima.values[own] : 0.0F;
            result.values[at] = product - minimum;
            result.sizes[at] = std::abs(product) + std::abs(minimum);
        }
    }
    if (range > 0) {
        for (std::int64_t c = 0; c < columns; ++c) {
            data.push_back(static_cast<std::uint8_t>(c == 0 ? -range / 2 : range / 2 - 1));
        }
        scales.add_zeros(groups, blocks);
        minima.add_zeros(groups, blocks);
    }
    SourceTensor source;
    source.format = kind.format;
    source.rows = rows + (range > 0 ? 1 : 0);
    source.columns = columns;
    source.group = group;
    source.data = {data.data(), row_bytes, 1};
    source.scale_type = kind.scales;
    source.scales = scales.view(kind.scales, groups);
    source.zeros = {zeros.data(), groups, 1};
    source.has_minima = kind.minima;
    source.minima = minima.view(kind.scales, groups);
    source.superblock = kSuperblock;
    source.scale_factors = scales.factor_view(blocks);
    source.minimum_factors = minima.factor_view(blocks);
    source.order = kind.ordered ? order.data() : nullptr;
    result.packed = Weight::pack_matrix(source, pool);
    const Format packed = range == 256 ? kind.format : kind.packed(shape);
    expect_equal(static_cast<int>(result.matrix().format), static_cast<int>(packed), group);
    return result;
}

// One token's activations as they meet a matrix of codes.
Doubles quantized(const PackedMatrix& matrix, const float* x) {
    const float largest = matrix.format == Format::kInt4 ? 127.0F : 16256.0F;
    const auto place = [&](std::int64_t c) { return matrix.order == nullptr ? c : matrix.order[c]; };
    Doubles result(matrix.columns);
    for (std::int64_t block = 0; block < matrix.columns; block += matrix.group * matrix.block_records) {
        const std::int64_t end = std::min(block + matrix.group * matrix.block_records, matrix.columns);
        float magnitude = 0;
        bool finite = true;
        for (std::int64_t c = block; c < end; ++c) {
            finite = finite && std::isfinite(x[place(c)]);
            magnitude = std::max(magnitude, std::abs(x[place(c)]));
        }
        const bool nothing = magnitude < 0x1p-100F;
        const float scale = !finite ? kNaN : nothing ? 0 : magnitude / largest;
        for (std::int64_t c = block; c < end; ++c) {
            const float code = !finite || nothing ? 0 : std::nearbyint(x[place(c)] * (largest / magnitude));
            result[place(c)] = static_cast<double>(code) * scale;
        }
    }
    return result;
}

// Tokens with the activations `x`, in one job or one for each half of the panels; [tokens][rows].
Floats multiply(const KernelTable& table, const PackedMatrix& matrix, const float* x, std::int64_t x_stride, int tokens,
                const float* bias, bool halves) {
    const std::int64_t y_stride = matrix.rows + 3, panels = (matrix.rows - 1) / kPanelRows + 1;
    Floats y(tokens * y_stride, kUntouched);
    const Scratch scratch(table.linear_scratch);
    LinearJob job = {};
    Bytes tiles;
    if (matrix.scale_type != ScaleType::kNone) {
        const int most = table.tile_tokens(matrix);
        job.tile_stride = static_cast<std::int64_t>(table.tile_bytes(matrix, most));
        for (int t = 0; t < tokens; t += most) {
            const int count = std::min(most, tokens - t);
            Bytes tile(table.tile_bytes(matrix, count), 0xFF);
            for (int i = count - 1; i >= 0; --i) {
                table.quantize({&matrix, x + (t + i) * x_stride, tile.data(), count, i});
            }
            tiles.insert(tiles.end(), tile.begin(), tile.end());
        }
    }
    job.matrix = &matrix;
    job.x = x;
    job.x_stride = x_stride;
    job.tiles = tiles.data();
    job.tokens = tokens;
    job.y = y.data();
    job.y_stride = y_stride;
    job.bias = bias;
    job.scratch = scratch.data();
    for (const std::int64_t end : {halves ? panels / 2 : panels, panels}) {
        job.panel_end = end;
        if (job.panel_begin < end) table.linear(job);
        job.panel_begin = end;
    }
    Floats result;
    for (int t = 0; t < tokens; ++t) {
        const auto row = y.begin() + t * y_stride;
        result.insert(result.end(), row, row + matrix.rows);
        for (int i = 0; i < 3; ++i) expect_equal(row[matrix.rows + i], kUntouched, t);
    }
    return result;
}

void check_quantize(const KernelTable& table, ThreadPool& pool) {
    for (const Kind& kind : kKinds) {
        for (const Shape& shape : kShapes) {
            if (!kind.codes() || !kind.allows(shape)) continue;
            const std::int64_t n = shape.columns;
            const int range = kind.format == Format::kInt8 ? kind.int8_codes : 0;
            const Matrix identity = make_codes(kind, {n, n, shape.group}, Fill::kIdentity, range, pool);
            const std::int64_t rows = identity.matrix().rows;
            const int tokens = 6;
            Floats x = random_floats(tokens * n, 1);
            for (int t = 0; t < tokens; ++t) {
                float* const row = x.data() + t * n;
                const float factor = t % 3 == 0 ? 1.0F : t % 3 == 1 ? 1e-31F : 1e30F;
                for (std::int64_t c = 0; c < std::min<std::int64_t>(n, 150); ++c) row[c] *= factor;
                if (t >= 3) row[below(n)] = t == 3 ? kInfinity : t == 4 ? -kNaN : 0.0F;
            }
            begin(table, std::string("quantize for ") + kind.name, {{"columns", n}, {"group", shape.group}});
            const Floats y = multiply(table, identity.matrix(), x.data(), n, tokens, nullptr, false);
            for (int t = 0; t < tokens; ++t) {
                const Doubles want = quantized(identity.matrix(), x.data() + t * n);
                const bool broken =
                    std::any_of(want.begin(), want.end(), [](double value) { return std::isnan(value); });
                for (std::int64_t c = 0; c < n; ++c) {
                    const double value = broken ? static_cast<double>(kNaN) : want[c];
                    expect_equal(y[t * rows + c], static_cast<float>(value), t * n + c);
                }
            }
        }
    }
}

void check_linear(const KernelTable& table, const Kind& kind, const Shape& shape, const Matrix& weight, const Floats& x,
                  int tokens) {
    const std::int64_t rows = shape.rows, columns = shape.columns, stride = columns + 5;
    begin(table, std::string("linear with ") + kind.name,
          {{"rows", rows}, {"columns", columns}, {"group", shape.group}, {"tokens", tokens}});
    const Floats numbers = random_floats(rows, 1);
    const float* const bias = columns % 2 == 0 ? numbers.data() : nullptr;
    const Floats all = multiply(table, weight.matrix(), x.data(), stride, tokens, bias, false);
    for (int t = 0; t < tokens; ++t) {
        const float* const row = x.data() + t * stride;
        const Doubles inputs = kind.codes() ? quantized(weight.matrix(), row) : Doubles(row, row + columns);
        for (std::int64_t r = 0; r < rows; ++r) {
            double want = bias ? bias[r] : 0, size = std::abs(want);
            for (std::int64_t c = 0; c < columns; ++c) {
                const std::int64_t i = r * columns + c;
                want += inputs[c] * weight.values[i];
                size += std::abs(inputs[c]) * weight.sizes[i];
            }
            expect_near(all[t * rows + r], want, 2e-6 * size, t * rows + r);
        }
    }
    // The same bits, whatever is beside a token.
    for (int count = 1; count < tokens; ++count) {
        const int first = tokens - count;
        const Floats some =
            multiply(table, weight.matrix(), x.data() + first * stride, stride, count, bias, count % 2 == 0);
        now = std::string(table.name) + ": linear with " + kind.name + ", the last " + std::to_string(count) +
              " tokens of " + std::to_string(tokens) + ", columns " + std::to_string(columns);
        for (std::int64_t i = 0; i < std::ssize(some); ++i) expect_bits(some[i], all[first * rows + i], i);
    }
}

// The same bits from all tables that round a product and a sum once: all but the portable one, the first.
void check_tables(const KernelTable& table, const Kind& kind, const Matrix& weight, const Floats& x, int tokens) {
    static const std::vector<const KernelTable*> tables = available_kernels();
    if (&table == tables[0] || &table == tables[1]) return;
    const std::int64_t stride = weight.matrix().columns + 5;
    begin(table, std::string("linear with ") + kind.name + " beside " + tables[1]->name, {{"columns", stride - 5}});
    const Floats got = multiply(table, weight.matrix(), x.data(), stride, tokens, nullptr, false);
    const Floats want = multiply(*tables[1], weight.matrix(), x.data(), stride, tokens, nullptr, false);
    for (std::int64_t i = 0; i < std::ssize(got); ++i) expect_bits(got[i], want[i], i);
}

// The same bits as with the same codes in bytes.
void check_compact(const KernelTable& table, const Kind& kind, const Matrix& weight, const Matrix& bytes,
                   const Floats& x, int tokens) {
    const std::int64_t rows = weight.matrix().rows, stride = weight.matrix().columns + 5;
    begin(table, std::string("linear with ") + kind.name + " beside bytes", {{"rows", rows}, {"columns", stride - 5}});
    const Floats got = multiply(table, weight.matrix(), x.data(), stride, tokens, nullptr, false);
    const Floats want = multiply(table, bytes.matrix(), x.data(), stride, tokens, nullptr, false);
    for (int t = 0; t < tokens; ++t) {
        for (std::int64_t r = 0; r < rows; ++r) expect_bits(got[t * rows + r], want[t * (rows + 1) + r], t * rows + r);
    }
}

void check_matrices(const KernelTable& table, ThreadPool& pool) {
    for (const Kind& kind : kKinds) {
        for (const Shape& shape : kShapes) {
            if (!kind.allows(shape)) continue;
            const std::mt19937 before = generator;
            const Matrix weight = kind.codes()                  ? make_codes(kind, shape, Fill::kRandom, 0, pool)
                                  : kind.format == Format::kFp8 ? make_fp8(shape, false, pool)
                                                                : make_floats(kind, shape, false, pool);
            // Three of the largest tiles and some, or all that a job may have.
            const int tokens = shape.columns == 40 ? kLinearTokens
                               : kind.codes()      ? table.tile_tokens(weight.matrix()) * 3 + 2
                                                   : 27;
            const Floats x = random_floats(tokens * (shape.columns + 5), 1);
            check_linear(table, kind, shape, weight, x, tokens);
            if (kind.codes()) check_tables(table, kind, weight, x, tokens);
            if (weight.matrix().format == Format::kInt5 || weight.matrix().format == Format::kInt6) {
                const std::mt19937 after = std::exchange(generator, before);
                check_compact(table, kind, weight, make_codes(kind, shape, Fill::kRandom, 256, pool), x, tokens);
                generator = after;
            }
            begin(table, std::string("embed with ") + kind.name, {{"rows", shape.rows}, {"columns", shape.columns}});
            Floats row(shape.columns);
            for (std::int64_t r = 0; r < shape.rows; ++r) {
                table.embed(weight.matrix(), r, row.data());
                for (std::int64_t c = 0; c < shape.columns; ++c) {
                    const std::int64_t i = r * shape.columns + c;
                    expect_equal(row[c], static_cast<float>(weight.values[i]), i);
                }
            }
        }
        if (!kind.codes()) continue;
        const Shape shape = {40, kind.format == Format::kInt8 ? 288 : 300, 128};
        Floats ones(2 * (shape.columns + 5), 1.0F);
        std::fill(ones.begin() + shape.columns + 5, ones.end(), -1.0F);
        check_linear(table, kind, shape, make_codes(kind, shape, Fill::kLargest, 0, pool), ones, 2);
    }
    for (const Kind& kind : {kKinds[1], kKinds[2]}) {
        const Matrix weight = make_floats(kind, {64, 1024, 0}, true, pool);
        begin(table, std::string("embed with every ") + kind.name, {});
        Floats row(1024);
        for (std::int64_t i = 0; i < 65536; ++i) {
            if (i % 1024 == 0) table.embed(weight.matrix(), i / 1024, row.data());
            expect_equal(row[i % 1024], weight.values[i], i);
        }
    }
    const Matrix weight = make_fp8({1, 256, 256}, true, pool);
    begin(table, "embed with every fp8", {});
    Floats row(256);
    table.embed(weight.matrix(), 0, row.data());
    for (std::int64_t i = 0; i < 256; ++i) expect_equal(row[i], weight.values[i], i);
}

void check(const KernelTable& table) {
    cases.clear();
    ThreadPool pool(1);
    check_quantize(table, pool);
    check_matrices(table, pool);
    check_rows(table);
    std::printf("  %s:", table.name);
    for (const auto& [function, number] : cases) std::printf(" %s %d", function.c_str(), number);
    std::puts("");
    std::fflush(stdout);
}

}  // namespace
}  // namespace windlass

int main() {
    for (const windlass::KernelTable* table : windlass::available_kernels()) windlass::check(*table);
    std::puts("  nothing wrong");
    return 0;
}
