// Byte pair encoding (Sennrich et al., 2016): joins the letters of a word to tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/characters.h"

namespace windlass {

// Which pairs of tokens join, in which order, and to what. The tables are borrowed; safe to use from many threads.
class Merger {
  public:
    // The pairs by their left token: those of token i are `starts[i]` to `starts[i + 1]` of the others, which say what
    // stands to the right, ascending, how early the pair joins, and what it becomes.
    Merger(std::span<const std::uint32_t> starts, std::span<const std::uint32_t> rights,
           std::span<const std::uint32_t> ranks, std::span<const std::uint32_t> joined);

    // Joins the pair of the lowest rank, the leftmost of its kind, until no pair is left. O(n log n) for any word;
    // needs about 40 bytes per letter. Ids may be any.
    void merge(std::vector<std::uint32_t>& word) const;

    std::size_t num_ids() const { return starts_.size() - 1; }

  private:
    void merge_short(std::vector<std::uint32_t>& word) const;
    void merge_long(std::vector<std::uint32_t>& word) const;

    // Where the pair is, or kNoId.
    std::uint32_t find(std::uint32_t left, std::uint32_t right) const;

    std::span<const std::uint32_t> starts_, rights_, ranks_, joined_;
};

}  // namespace windlass
