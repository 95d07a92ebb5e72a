// Unicode's normalization form C (UAX #15).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/characters.h"

namespace windlass {

// Its tables are borrowed; safe to use from many threads.
class Normalizer {
  public:
    // Characters that decompose, ascending, and where the parts of each begin in `parts`; pairs that compose, the first
    // in the upper half, ascending, and what they become. Hangul syllables are in neither: they are worked out.
    Normalizer(const CharacterTable& characters, std::span<const std::uint32_t> decomposing,
               std::span<const std::uint32_t> part_starts, std::span<const std::uint32_t> parts,
               std::span<const std::uint64_t> pairs, std::span<const std::uint32_t> composed);

    // True only for text that normalization would not change.
    bool is_normal(std::string_view text) const;

    // O(n log n) for any text; needs about 24 bytes per byte of it.
    std::string normalized(std::string_view text) const;

  private:
    struct Mark {
        std::uint32_t code;
        std::uint32_t combining;
    };

    void decompose(std::uint32_t code, std::vector<Mark>& out) const;
    void compose(std::vector<Mark>& marks) const;
    std::uint32_t join(std::uint32_t first, std::uint32_t second) const;

    const CharacterTable& characters_;
    std::span<const std::uint32_t> decomposing_, part_starts_, parts_;
    std::span<const std::uint64_t> pairs_;
    std::span<const std::uint32_t> composed_;
};

}  // namespace windlass
