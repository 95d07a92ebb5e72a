// A small vocabulary with everything that the tables of an encoder can say, for tests that damage it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "text/bpe_encoder.h"

namespace windlass {

inline constexpr std::uint32_t kNumIds = 700, kMany = 0xFFFFFFFF;

// The tables of an encoder, each exactly as large as it says, so that a read beyond its end is seen.
struct Tables {
    std::map<std::string, std::vector<std::uint32_t>> words;
    std::map<std::string, std::vector<std::uint8_t>> bytes;
    std::vector<std::uint64_t> compositions;

    BpeTables view() const {
        const auto chars = [this](const char* name) {
            const std::vector<std::uint8_t>& found = bytes.at(name);
            return std::span<const char>(reinterpret_cast<const char*>(found.data()), found.size());
        };
        const auto& w = words;
        return {w.at("letters"),
                w.at("characters"),
                w.at("character_ids"),
                w.at("unknown"),
                w.at("spaces"),
                w.at("pair_starts"),
                w.at("pair_rights"),
                w.at("pair_ranks"),
                w.at("pair_joined"),
                w.at("entry_starts"),
                chars("entries"),
                w.at("whole_words"),
                bytes.at("blocks"),
                bytes.at("kinds"),
                w.at("sets"),
                bytes.at("combining"),
                bytes.at("normal"),
                w.at("decomposing"),
                w.at("part_starts"),
                w.at("parts"),
                compositions,
                w.at("composed"),
                w.at("steps"),
                w.at("alternatives"),
                w.at("patterns"),
                chars("added"),
                w.at("added_starts"),
                w.at("added_ids"),
                bytes.at("added_normal"),
                true};
    }
};

using Pairs = std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::uint32_t, std::uint32_t>>;

using Pairs = std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::uint32_t, std::uint32_t>>;

// Pairs of few letters, and of what they become; ranks are in the order in which the outcomes were made. `below` gives
// a number below its argument.
template <typename Below>
Pairs random_pairs(const Below& below) {
    Pairs pairs;
    for (std::uint32_t made = 256; made < kNumIds; ++made) {
        const auto part = [&, made] { return below(2) == 0 ? 'a' + below(4) : 256 + below(made - 255) - (made > 256); };
        const std::uint32_t left = std::min(part(), made - 1), right = std::min(part(), made - 1);
        pairs.emplace(std::pair(left, right), std::pair(made, made));
    }
    return pairs;
}

// A vocabulary, and tables of characters and patterns that have everything once: words of a few letters behind a
// space, contractions, spaces that no other character follows, marks that combine and compose.
inline Tables make_tables(const Pairs& pairs) {
    Tables tables;
    auto& w = tables.words;
    for (std::uint32_t byte = 0; byte < 256; ++byte) w["letters"].push_back(byte == 'z' ? kNoId : byte);
    w["characters"] = {};
    w["character_ids"] = {};
    w["unknown"] = {kNoId};
    w["spaces"] = {0};
    w["pair_starts"].assign(kNumIds + 1, 0);
    for (const auto& [pair, outcome] : pairs) {
        ++w["pair_starts"][pair.first + 1];
        w["pair_rights"].push_back(pair.second);
        w["pair_ranks"].push_back(outcome.first);
        w["pair_joined"].push_back(outcome.second);
    }
    for (std::uint32_t id = 0; id < kNumIds; ++id) w["pair_starts"][id + 1] += w["pair_starts"][id];
    for (std::uint32_t id = 0; id <= kNumIds; ++id) w["entry_starts"].push_back(id * 2);
    for (std::uint32_t id = 0; id < kNumIds; ++id) {
        tables.bytes["entries"].push_back(static_cast<std::uint8_t>('A' + id / 26));
        tables.bytes["entries"].push_back(static_cast<std::uint8_t>('A' + id % 26));
        if (id > 600) w["whole_words"].push_back(id);
    }
    // Kinds: nothing, a letter, a space, an apostrophe, two marks, a letter that decomposes.
    tables.bytes["blocks"].assign(kNumCharacters / 256, 0);
    tables.bytes["blocks"][3] = 1;
    tables.bytes["kinds"].assign(512, 0);
    for (int letter = 'a'; letter <= 'z'; ++letter) tables.bytes["kinds"][letter] = 1;
    for (const char space : {' ', '\n', '\t'}) tables.bytes["kinds"][space] = 2;
    tables.bytes["kinds"]['\''] = 3;
    tables.bytes["kinds"][256] = 4;  // U+0300
    tables.bytes["kinds"][257] = 5;
    tables.bytes["kinds"][258] = 4;
    tables.bytes["kinds"][0xE0] = 6;
    w["sets"] = {8, 1 | 8, 2, 4 | 8, 8, 8, 1 | 8};
    tables.bytes["combining"] = {0, 0, 0, 0, 1, 2, 0};
    tables.bytes["normal"] = {0, 0, 0, 0, 5, 5, 2};
    w["decomposing"] = {0xE0};
    w["part_starts"] = {0, 2};
    w["parts"] = {'a', 0x300};
    tables.compositions = {std::uint64_t{'a'} << 32 | 0x300};
    w["composed"] = {0xE0};
    w["steps"] = {0, 1, 0, 1,     0, 0, 1, kMany, 3, 0, 0, 1,  // a space or not, letters, and a contraction or not
                  0, 2, 1, 1,     0, 0, 1, 1,                  // the contraction
                  0, 1, 1, kMany, 2, 3, 0, 0,                  // spaces before nothing else
                  1, 1, 1, kMany,                              // spaces
                  0, 3, 2, kMany, 0, 2, 1, 1};                 // within those, anything before an apostrophe
    w["alternatives"] = {3, 2, 0, 3, 5, 2, 7, 1, 8, 2};
    w["patterns"] = {1, 3, 0, 4, 1, 0};
    for (const char byte : std::string("<x><x>y")) tables.bytes["added"].push_back(static_cast<std::uint8_t>(byte));
    w["added_starts"] = {0, 3, 7};
    w["added_ids"] = {kNumIds, kNoId};
    tables.bytes["added_normal"] = {0, 1};
    return tables;
}

}  // namespace windlass
