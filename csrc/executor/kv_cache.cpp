#include "executor/kv_cache.h"

#include <limits>
#include <new>

namespace windlass {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max() / 4;

std::int64_t multiply(std::int64_t a, std::int64_t b) {
    if (a != 0 && b > kLargest / a) throw std::bad_alloc();
    return a * b;
}

}  // namespace

std::int64_t KVCache::Shape::block_bytes() const {
    const std::int64_t padded = (std::int64_t{head_dim} + kHeadPadding - 1) / kHeadPadding * kHeadPadding;
    const std::int64_t elements = (head_dim + padded) * kPageSize;
    const std::int64_t scales = 2 * kPageSize * static_cast<std::int64_t>(sizeof(float));
    if (type == KVType::kInt8) return elements + scales;
    if (type == KVType::kInt16) return (elements + head_dim % 2 * kPageSize) * 2 + scales;
    return elements * (type == KVType::kF32 ? 4 : 2);
}

std::int64_t KVCache::Shape::page_bytes() const { return multiply(multiply(layers, heads), block_bytes()); }

KVCache::KVCache(const Shape& shape, std::int64_t pages)
    : shape_(shape),
      block_bytes_(shape.block_bytes()),
      page_bytes_(shape.page_bytes()),
      memory_(static_cast<std::size_t>(multiply(page_bytes_, pages))) {}

}  // namespace windlass
