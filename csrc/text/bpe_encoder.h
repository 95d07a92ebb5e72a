// BPE over bytes, or over characters, from tables that are used as they lie in memory: text to token ids.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/characters.h"
#include "text/merger.h"
#include "text/normalizer.h"
#include "text/splitter.h"

namespace windlass {

// A vocabulary as it lies in a file: src/windlass/text/packing.py makes it. Numbers that point somewhere are checked
// before use.
struct BpeTables {
    std::span<const std::uint32_t> letters;  // [256]: the token of each byte, or kNoId
    // The characters that are tokens, ascending, and which; none when words are made of bytes. A character that is no
    // token is written as its bytes, or, if one of them is none either, as `unknown`, which has one id, perhaps kNoId.
    std::span<const std::uint32_t> characters, character_ids, unknown;
    // One number: what becomes of spaces, see Spaces.
    std::span<const std::uint32_t> spaces;
    // See Merger.
    std::span<const std::uint32_t> pair_starts, pair_rights, pair_ranks, pair_joined;
    // Tokens as the vocabulary writes them, in GPT-2's alphabet, and where each begins; those that a whole word may
    // become, in the order of their texts, or none.
    std::span<const std::uint32_t> entry_starts;
    std::span<const char> entries;
    std::span<const std::uint32_t> whole_words;
    // See CharacterTable, Normalizer and Splitter.
    std::span<const std::uint8_t> blocks, kinds;
    std::span<const std::uint32_t> sets;
    std::span<const std::uint8_t> combining, normal;
    std::span<const std::uint32_t> decomposing, part_starts, parts;
    std::span<const std::uint64_t> compositions;
    std::span<const std::uint32_t> composed;
    std::span<const std::uint32_t> steps, alternatives, patterns;
    // The texts of added tokens one after the other, where each begins, its id or kNoId (see AddedTokens), and whether
    // it is looked for after normalization instead of before.
    std::span<const char> added;
    std::span<const std::uint32_t> added_starts, added_ids;
    std::span<const std::uint8_t> added_normal;
    bool normalizes;
};

// How SentencePiece's vocabularies write spaces, and one more before a text, or before each part between added tokens.
enum Spaces : std::uint32_t {
    kReplaceSpaces = 1,     // a space is written U+2581
    kPrefixParts = 2,       // each part gets one before it
    kPrefixText = 4,        // the first part does, if it begins the text
    kUnlessThereIsOne = 8,  // but not a part that begins with one
    kAllSpaces = 15,
};

// Safe to use from many threads.
class BpeEncoder {
  public:
    static constexpr std::size_t kMostBytes = std::size_t{1} << 31;

    // The tables are borrowed. Throws std::invalid_argument for tables that cannot be used.
    explicit BpeEncoder(const BpeTables& tables);
    BpeEncoder(const BpeEncoder&) = delete;  // its parts refer to each other
    BpeEncoder& operator=(const BpeEncoder&) = delete;

    // The ids of plain text in UTF-8 of at most kMostBytes; bytes that are none are safe, but their ids mean nothing.
    std::vector<std::uint32_t> encode(std::string_view text) const;

  private:
    class Call;

    AddedTokens added_tokens(const BpeTables& tables, bool normal) const;
    std::uint32_t whole_word(std::string_view word) const;
    std::string_view entry(std::uint32_t id) const;
    std::string spaced(std::string_view part, bool is_first) const;
    void spell_bytes(std::string_view word, std::vector<std::uint32_t>& out) const;
    void spell_characters(std::string_view word, std::vector<std::uint32_t>& out) const;

    std::array<std::uint32_t, 256> letters_;
    std::span<const std::uint32_t> codes_, code_ids_;
    std::array<std::uint32_t, 128> ascii_;  // the ids of its characters, or kNoId
    std::uint32_t unknown_ = kNoId, spaces_ = 0;
    std::array<std::uint32_t, 256> spelled_;  // each byte as a character of GPT-2's alphabet
    std::span<const std::uint32_t> entry_starts_;
    std::span<const char> entries_;
    std::span<const std::uint32_t> whole_words_;
    std::size_t longest_whole_ = 0;
    bool normalizes_;
    CharacterTable characters_;
    Normalizer normalizer_;
    Splitter splitter_;
    Merger merger_;
    AddedTokens added_, added_normal_;
};

}  // namespace windlass
