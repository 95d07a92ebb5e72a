// The paged cache of keys and values.
#pragma once

#include <cstdint>

#include "kernels/table.h"
#include "runtime/memory.h"

namespace windlass {

// Pages of kPageSize tokens. A page holds all layers and KV heads of its tokens, one block per (layer, KV head): keys
// [head_dim][kPageSize], then values [kPageSize][padded head_dim], then with codes the scales of both
// (csrc/kernels/attention.inl). Owns its memory, which the system provides as pages are first written. Not
// synchronized: writers and readers of one step are separated by the executor.
class KVCache {
  public:
    struct Shape {
        std::int64_t layers = 0;
        int heads = 0;
        int head_dim = 0;
        KVType type = KVType::kF32;

        std::int64_t block_bytes() const;
        // Throws std::bad_alloc when that is beyond any machine.
        std::int64_t page_bytes() const;
    };

    KVCache() = default;
    // Throws std::bad_alloc.
    KVCache(const Shape& shape, std::int64_t pages);

    const Shape& shape() const { return shape_; }
    std::int64_t page_bytes() const { return page_bytes_; }
    std::size_t bytes() const { return memory_.size(); }
    std::uint8_t* block(std::int64_t page, std::int64_t layer, int head) const {
        return memory_.data() + page * page_bytes_ + (layer * shape_.heads + head) * block_bytes_;
    }

  private:
    Shape shape_;
    std::int64_t block_bytes_ = 0;
    std::int64_t page_bytes_ = 0;
    Mapping memory_;
};

}  // namespace windlass
