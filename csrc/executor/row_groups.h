// Which rows meet which of the matrices that are stacked in one weight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace windlass {

// Neighbouring rows that meet the same matrix. Rows are numbered group by group.
struct RowGroup {
    std::int64_t matrix = 0;
    std::int64_t first_row = 0;
    std::int64_t rows = 0;
    std::int64_t first_tile = 0;  // of their quantized activations

    std::int64_t end_row() const { return first_row + rows; }
};

// The groups of one operation. Allocates only in reserve().
class RowGroups {
  public:
    void reserve(std::int64_t groups, std::int64_t rows, std::int64_t tokens);

    // Every token meets every matrix, of which there are `heads`: row r is token r % tokens.
    void all(std::int64_t heads, std::int64_t tokens);
    // Token t meets the matrices e with shares[t * stride + e] != 0.
    void chosen(const float* shares, std::int64_t stride, std::int64_t tokens, std::int64_t experts);

    // Numbers the tiles, of `tile` rows each, but the last one of each group. With `shared` there is one tile, the same
    // for all.
    void number_tiles(std::int64_t tile, bool shared);

    const std::vector<RowGroup>& groups() const { return groups_; }
    std::int64_t rows() const { return groups_.empty() ? 0 : groups_.back().end_row(); }
    std::int64_t tiles() const { return tiles_; }
    const RowGroup& group_of_tile(std::int64_t tile) const;

    // After chosen(): the token of a row and its share, and the rows of a token, by ascending matrix.
    std::int64_t token(std::int64_t row) const { return tokens_[static_cast<std::size_t>(row)]; }
    float share(std::int64_t row) const { return shares_[static_cast<std::size_t>(row)]; }
    template <typename Body>
    void for_rows_of(std::int64_t token, const Body& body) const {
        const std::size_t t = static_cast<std::size_t>(token);
        for (std::int32_t i = starts_[t]; i < starts_[t + 1]; ++i)
            body(std::int64_t{rows_[static_cast<std::size_t>(i)]});
    }

  private:
    std::vector<RowGroup> groups_;
    std::int64_t tiles_ = 0;
    std::vector<std::int64_t> next_;    // per matrix: its next row
    std::vector<std::int32_t> tokens_;  // per row
    std::vector<float> shares_;         // per row
    std::vector<std::int32_t> rows_;    // of all tokens
    std::vector<std::int32_t> starts_;  // per token, of its part of `rows_`
};

}  // namespace windlass
