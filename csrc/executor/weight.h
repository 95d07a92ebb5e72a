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
    ArrayView scales;
    ArrayView zeros;  // kInt4
};

// A packed matrix or a vector of floats. Owns its memory.
class Weight {
  public:
    Weight() = default;
    // Packs with the threads of `pool`. Throws std::bad_alloc.
    static Weight pack_matrix(const SourceTensor& source, ThreadPool& pool);
    // A float format only; the vector is row 0.
    static Weight pack_vector(const SourceTensor& source);

    bool ready() const { return memory_.data() != nullptr; }
    std::size_t bytes() const { return memory_.size(); }
    const PackedMatrix& matrix() const { return matrix_; }
    const float* vector() const { return memory_.floats(); }

  private:
    static Weight pack_floats(const SourceTensor& source, ThreadPool& pool);
    static Weight pack_codes(const SourceTensor& source, ThreadPool& pool);

    Mapping memory_;
    PackedMatrix matrix_ = {};
};

}  // namespace windlass
