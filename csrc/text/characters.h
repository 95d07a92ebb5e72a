// UTF-8, and what a table says of each character. The table comes from a file that nobody vouches for: whoever makes a
// CharacterTable checks it first, and from then on every lookup is in bounds, whatever the text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace windlass {

inline constexpr std::uint32_t kNoId = 0xFFFFFFFF;
inline constexpr std::uint32_t kReplacement = 0xFFFD;
inline constexpr std::uint32_t kNumCharacters = 0x110000;

// Thrown for tables that are not what they should be.
inline void require(bool right, const char* what) {
    if (!right) throw std::invalid_argument(what);
}

// Whether `starts` divides `size` things: it begins with 0, never falls, and ends with `size`.
inline bool divides(std::span<const std::uint32_t> starts, std::size_t size) {
    if (starts.empty() || starts.front() != 0 || starts.back() != size) return false;
    for (std::size_t i = 1; i < starts.size(); ++i) {
        if (starts[i] < starts[i - 1]) return false;
    }
    return true;
}

struct Character {
    std::uint32_t code;
    std::uint32_t size;  // in bytes, at least 1
};

inline bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// The character at `at`, which is before `end`. A byte that begins none is U+FFFD and one byte long.
inline Character decode(const char* at, const char* end) {
    const auto byte = [at](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(at[i])); };
    const std::uint32_t first = byte(0);
    if (first < 0x80) return {first, 1};
    const std::uint32_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 0;
    if (size == 0 || end - at < static_cast<std::ptrdiff_t>(size)) return {kReplacement, 1};
    std::uint32_t code = first & (0x7FU >> size);
    for (std::size_t i = 1; i < size; ++i) {
        if (!continues(at[i])) return {kReplacement, 1};
        code = code << 6 | (byte(i) & 0x3F);
    }
    return code < kNumCharacters ? Character{code, size} : Character{kReplacement, 1};
}

inline void append_utf8(std::string& text, std::uint32_t code) {
    const auto put = [&text](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

// Characters that nothing tells apart are one kind. Of each kind the table says in which sets it is, one bit each, and
// how it behaves under normalization.
class CharacterTable {
  public:
    enum Normal : std::uint8_t {
        kUnsettled = 1,    // normalization may change it, or put something before it
        kDecomposes = 2,   // it is written as others first
        kJoinsBefore = 4,  // it may become one with the character before it
    };

    // `blocks` has one number per 256 characters, that of its block in `kinds`; the others one entry per kind. Classes
    // of combining characters are in the order of Unicode's; 0 is for those that do not combine.
    CharacterTable(std::span<const std::uint8_t> blocks, std::span<const std::uint8_t> kinds,
                   std::span<const std::uint32_t> sets, std::span<const std::uint8_t> combining,
                   std::span<const std::uint8_t> normal)
        : blocks_(blocks), kinds_(kinds), sets_(sets), combining_(combining), normal_(normal) {
        require(blocks.size() == kNumCharacters / 256 && kinds.size() % 256 == 0, "the table of characters is cut off");
        require(combining.size() == sets.size() && normal.size() == sets.size(), "the table of kinds is cut off");
        for (const std::uint8_t block : blocks) require(block < kinds.size() / 256, "a block of characters is missing");
        for (const std::uint8_t kind : kinds) require(kind < sets.size(), "a kind of characters is missing");
        for (std::uint32_t code = 0; code < 128; ++code) ascii_[code] = sets[kind(code)];
    }

    std::uint32_t sets(std::uint32_t code) const { return code < 128 ? ascii_[code] : sets_[kind(code)]; }
    std::uint8_t combining(std::uint32_t code) const { return combining_[kind(code)]; }
    std::uint8_t normal(std::uint32_t code) const { return normal_[kind(code)]; }

  private:
    std::size_t kind(std::uint32_t code) const { return kinds_[blocks_[code >> 8] * 256U + (code & 255)]; }

    std::span<const std::uint8_t> blocks_, kinds_;
    std::span<const std::uint32_t> sets_;
    std::span<const std::uint8_t> combining_, normal_;
    std::uint32_t ascii_[128];
};

}  // namespace windlass
