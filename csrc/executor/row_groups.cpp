#include "executor/row_groups.h"

namespace windlass {

void RowGroups::reserve(std::int64_t groups, std::int64_t rows, std::int64_t tokens) {
    groups_.reserve(static_cast<std::size_t>(groups));
    next_.reserve(static_cast<std::size_t>(groups));
    tokens_.reserve(static_cast<std::size_t>(rows));
    shares_.reserve(static_cast<std::size_t>(rows));
    rows_.reserve(static_cast<std::size_t>(rows));
    starts_.reserve(static_cast<std::size_t>(tokens + 1));
}

void RowGroups::all(std::int64_t heads, std::int64_t tokens) {
    groups_.clear();
    for (std::int64_t head = 0; head < heads; ++head) groups_.push_back({head, head * tokens, tokens, 0});
}

void RowGroups::chosen(const float* shares, std::int64_t stride, std::int64_t tokens, std::int64_t experts) {
    next_.assign(static_cast<std::size_t>(experts), 0);
    for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t e = 0; e < experts; ++e) next_[static_cast<std::size_t>(e)] += shares[t * stride + e] != 0.0F;
    }
    groups_.clear();
    std::int64_t rows = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
        std::int64_t& next = next_[static_cast<std::size_t>(e)];
        if (next > 0) groups_.push_back({e, rows, next, 0});
        rows += next;
        next = rows - next;
    }
    tokens_.resize(static_cast<std::size_t>(rows));
    shares_.resize(static_cast<std::size_t>(rows));
    rows_.clear();
    starts_.clear();
    for (std::int64_t t = 0; t < tokens; ++t) {
        starts_.push_back(static_cast<std::int32_t>(rows_.size()));
        for (std::int64_t e = 0; e < experts; ++e) {
            const float share = shares[t * stride + e];
            if (share == 0.0F) continue;
            const std::size_t row = static_cast<std::size_t>(next_[static_cast<std::size_t>(e)]++);
            tokens_[row] = static_cast<std::int32_t>(t);
            shares_[row] = share;
            rows_.push_back(static_cast<std::int32_t>(row));
        }
    }
    starts_.push_back(static_cast<std::int32_t>(rows_.size()));
}

void RowGroups::number_tiles(std::int64_t tile, bool shared) {
    tiles_ = shared ? 1 : 0;
    for (RowGroup& group : groups_) {
        group.first_tile = shared ? 0 : tiles_;
        if (!shared) tiles_ += (group.rows + tile - 1) / tile;
    }
}

const RowGroup& RowGroups::group_of_tile(std::int64_t tile) const {
    const auto next =
        std::upper_bound(groups_.begin(), groups_.end(), tile,
                         [](std::int64_t wanted, const RowGroup& group) { return wanted < group.first_tile; });
    return *(next - 1);
}

}  // namespace windlass
