// Weights in the layout of the kernels.
#pragma once

#include <cstdint>

#include "kernels/table.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace windlass {

// A borrowed array of any strides, in bytes; a stride of 0 repeats an element.
struct ArrayView {
    const std::uint8_t* data = nullptr;
    std::int64_t row_stride = 0;
    std::int64_t column_stride = 0;

    const std::uint8_t* at(std::int64_t row, std::int64_t column) const {
        return data + row * row_stride + column * column_stride;
    }
};

// A weight as windlass.quantization.Tensor describes it. Borrows its arrays.
struct SourceTensor {
    Format format = Format::kF32;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    ArrayView data;
    std::int64_t group = 0;
    ScaleType scale_type = ScaleType::kNone;
    ArrayView scales;  // kFp8, whose scale type is kNone: float
    ArrayView zeros;   // kInt4 without minima
    bool has_minima = false;
    ArrayView minima;  // of the type of the scales
    // kProduct: one factor, as f16, for all scales of `superblock` columns of a row, and one for the minima.
    std::int64_t superblock = 0;
    ArrayView scale_factors;
    ArrayView minimum_factors;
    const std::int32_t* order = nullptr;  // codes: [columns], each below `columns`; see PackedMatrix
};

// What a packed weight is; size and layout follow from it.
struct WeightLayout {
    Format format = Format::kF32;
    ScaleType scale_type = ScaleType::kNone;
    bool is_vector = false;  // floats, whatever they came from
    bool own_zeros = false;  // kInt4: each record has its zero points
    bool minima = false;     // codes: each record has its minima
    bool ordered = false;    // codes: the columns have an order of their own
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::int64_t group = 0;  // columns of a record, as PackedMatrix has it

    // Whether a weight can have this layout: the sizes are positive, and formats and groups go together.
    bool possible() const;
    // Bytes in memory and in a file, the zero point of all included. No overflow for a possible() layout whose bytes
    // a double can count below 2^62; more than that is 0.
    std::int64_t bytes() const;
    // The matrix that lies at `data`.
    PackedMatrix matrix(const std::uint8_t* data) const;
    // Whether the order of the columns that lies with a matrix at `data`, if there is one, names columns that exist.
    bool order_fits(const std::uint8_t* data) const;
};

// A packed matrix or a vector of floats. Owns its memory, or borrows it from a file that is mapped.
class Weight {
  public:
    Weight() = default;
    // Packs with the threads of `pool`. Throws std::bad_alloc.
    static Weight pack_matrix(const SourceTensor& source, ThreadPool& pool);
    // A float format only; the vector is row 0.
    static Weight pack_vector(const SourceTensor& source);
    // The layout is possible(); its bytes() at `data` outlive the weight.
    static Weight borrow(const WeightLayout& layout, const std::uint8_t* data);

    bool ready() const { return data_ != nullptr; }
    std::size_t bytes() const { return static_cast<std::size_t>(bytes_); }
    const WeightLayout& layout() const { return layout_; }
    const std::uint8_t* data() const { return data_; }
    const PackedMatrix& matrix() const { return matrix_; }
    const float* vector() const { return reinterpret_cast<const float*>(data_); }

  private:
    // Memory of its own for a layout, zeroed.
    static Weight reserve(const WeightLayout& layout);
    static Weight pack_floats(const SourceTensor& source, ThreadPool& pool);
    static Weight pack_codes(const SourceTensor& source, ThreadPool& pool);
    static Weight pack_fp8(const SourceTensor& source, ThreadPool& pool);

    Mapping memory_;  // empty when borrowed
    const std::uint8_t* data_ = nullptr;
    std::int64_t bytes_ = 0;
    WeightLayout layout_;
    PackedMatrix matrix_ = {};
};

// A number that changes when packing does: some little weights of every kind, packed and hashed.
// Throws std::bad_alloc or std::system_error.
std::uint64_t packing_fingerprint();

}  // namespace windlass
