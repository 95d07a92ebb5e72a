// Grouped quantization while a model is loaded: windlass.quantization.quantize, bit for bit, on all threads.
#pragma once

#include <cstdint>

#include "kernels/table.h"
#include "runtime/thread_pool.h"

namespace windlass {

// How scales are rounded before they are used: to a half, to a bfloat16, or not at all.
enum class ScaleRounding { kF16, kBF16, kF32 };

// A matrix of a float format, contiguous, and where its codes and scales go. Borrows all of it.
struct QuantizeTask {
    Format format = Format::kF32;
    const std::uint8_t* data = nullptr;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    int bits = 4;  // 8 gives kInt8, less gives kInt4
    std::int64_t group = 0;
    ScaleRounding rounding = ScaleRounding::kF16;
    std::uint8_t* codes = nullptr;   // [rows, columns] of kInt8, [rows, (columns + 1) / 2] of kInt4
    std::uint8_t* scales = nullptr;  // [rows, groups]: halves for kF16, else floats
};

// False when a number is not finite or a scale does not fit: then the output means nothing.
bool quantize_matrix(const QuantizeTask& task, ThreadPool& pool);

}  // namespace windlass
