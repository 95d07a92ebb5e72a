#include "executor/batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/table.h"

namespace windlass {
namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

void check_range(const char* name, std::span<const std::int32_t> values, std::int64_t end) {
    for (const std::int32_t value : values) {
        if (value < 0 || value >= end) {
            refuse(std::string(name) + " has the value " + std::to_string(value) + ", which must lie in 0 .. " +
                   std::to_string(end - 1));
        }
    }
}

void check_starts(const char* name, std::span<const std::int32_t> starts, std::size_t end) {
    bool good = starts.size() >= 2 && starts.front() == 0 && static_cast<std::size_t>(starts.back()) == end;
    for (std::size_t s = 0; good && s + 1 < starts.size(); ++s) good = starts[s] < starts[s + 1];
    if (!good) {
        refuse(std::string(name) + " must ascend from 0 to " + std::to_string(end) +
               ", with something in every sequence");
    }
}

void check_adapters(const BatchView& batch, std::uint64_t executor_id) {
    const bool none = batch.adapters.empty() && batch.sequence_adapters.empty();
    if (!none && static_cast<std::int64_t>(batch.sequence_adapters.size()) != batch.sequences()) {
        refuse("adapters must be one for each sequence");
    }
    for (const std::shared_ptr<const Adapter>& adapter : batch.adapters) {
        if (!adapter) refuse("adapters has one that is closed");
        if (adapter->executor_id() != executor_id) refuse("adapters has one of another executor");
    }
    for (const std::int32_t index : batch.sequence_adapters) {
        if (index < -1 || index >= static_cast<std::int64_t>(batch.adapters.size())) {
            refuse("adapters has no adapter " + std::to_string(index));
        }
    }
}

}  // namespace

void check_batch(const BatchView& batch, const BatchLimits& limits, std::vector<std::int64_t>& slots) {
    const std::int64_t tokens = batch.tokens();
    if (tokens < 1 || tokens > limits.max_tokens) {
        refuse("a batch of " + std::to_string(tokens) + " tokens; this executor takes 1 to " +
               std::to_string(limits.max_tokens));
    }
    if (batch.positions.size() != batch.token_ids.size()) {
        refuse(std::to_string(batch.positions.size()) + " positions for " + std::to_string(tokens) + " token_ids");
    }
    if (static_cast<std::int64_t>(batch.logit_rows.size()) > limits.max_tokens) {
        refuse(std::to_string(batch.logit_rows.size()) + " logit_rows; this executor takes at most " +
               std::to_string(limits.max_tokens));
    }
    check_range("token_ids", batch.token_ids, limits.vocab_size);
    check_range("positions", batch.positions, limits.max_positions);
    check_range("page_ids", batch.page_ids, limits.num_pages);
    check_range("logit_rows", batch.logit_rows, tokens);
    check_starts("token_starts", batch.token_starts, batch.token_ids.size());
    check_starts("page_starts", batch.page_starts, batch.page_ids.size());
    if (batch.token_starts.size() != batch.page_starts.size()) {
        refuse("token_starts and page_starts speak of different numbers of sequences");
    }
    check_adapters(batch, limits.executor_id);
    slots.clear();
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
        const std::int32_t begin = batch.token_starts[s], end = batch.token_starts[s + 1];
        for (std::int32_t t = begin + 1; t < end; ++t) {
            if (batch.positions[t] - 1 != batch.positions[t - 1]) {
                refuse("the positions of a sequence are not consecutive");
            }
        }
        const std::int32_t first_page = batch.page_starts[s];
        if (batch.positions[end - 1] / kPageSize >= batch.page_starts[s + 1] - first_page) {
            refuse("page_ids do not reach the last position of every sequence");
        }
        for (std::int32_t t = begin; t < end; ++t) {
            const std::int32_t position = batch.positions[t];
            const std::int64_t page = batch.page_ids[first_page + position / kPageSize];
            slots.push_back(page * kPageSize + position % kPageSize);
        }
    }
    std::sort(slots.begin(), slots.end());
    if (std::adjacent_find(slots.begin(), slots.end()) != slots.end()) {
        refuse("two tokens of the batch would be stored in the same slot of page_ids");
    }
}

}  // namespace windlass
