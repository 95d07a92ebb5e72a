// One step's work.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "executor/adapter.h"

namespace windlass {

// The arrays of windlass.program.executor.Batch, borrowed for one call.
struct BatchView {
    std::span<const std::int32_t> token_ids;
    std::span<const std::int32_t> positions;
    std::span<const std::int32_t> token_starts;
    std::span<const std::int32_t> page_ids;
    std::span<const std::int32_t> page_starts;
    std::span<const std::int32_t> logit_rows;
    // The adapters of the batch, and for each sequence which of them it has, or -1; both empty when none has any.
    std::span<const std::shared_ptr<const Adapter>> adapters = {};
    std::span<const std::int32_t> sequence_adapters = {};

    std::int64_t tokens() const { return static_cast<std::int64_t>(token_ids.size()); }
    std::int64_t sequences() const { return static_cast<std::int64_t>(token_starts.size()) - 1; }
};

struct BatchLimits {
    std::int64_t max_tokens = 0;
    std::int64_t max_positions = 0;
    std::int64_t num_pages = 0;
    std::int64_t vocab_size = 0;
    std::uint64_t executor_id = 0;
};

// Holds a batch to the rules of Batch and to the limits: after it, no index of the batch is out of bounds and no two
// tokens share a slot of the KV cache. Throws std::invalid_argument naming the array at fault.
// `slots` is working memory with room for max_tokens.
void check_batch(const BatchView& batch, const BatchLimits& limits, std::vector<std::int64_t>& slots);

}  // namespace windlass
