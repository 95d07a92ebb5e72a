// Checks the encoding of text: merges against the obvious way to do them, tables of all kinds of damage, bytes that are
// no text, and threads that share an encoder. Exits with 1 when something is wrong; to be run under the sanitizers.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/text_tables.h"
#include "text/bpe_encoder.h"

namespace windlass {
namespace {

std::mt19937 generator(1);

void expect(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

std::uint32_t below(std::uint32_t end) { return static_cast<std::uint32_t>(generator() % end); }

// Joins the leftmost pair of the lowest rank, again and again.
std::vector<std::uint32_t> merged(std::vector<std::uint32_t> word, const Pairs& pairs) {
    for (;;) {
        std::size_t best = word.size();
        std::pair<std::uint32_t, std::uint32_t> outcome = {kMany, 0};
        for (std::size_t i = 0; i + 1 < word.size(); ++i) {
            const auto found = pairs.find({word[i], word[i + 1]});
            if (found == pairs.end() || found->second.first >= outcome.first) continue;
            best = i;
            outcome = found->second;
        }
        if (best == word.size()) return word;
        word[best] = outcome.second;
        word.erase(word.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
}

void check_merges() {
    for (int round = 0; round < 60; ++round) {
        const Pairs pairs = random_pairs(below);
        const Tables tables = make_tables(pairs);
        const BpeEncoder encoder(tables.view());
        for (int length = 1; length < 90; length += 1 + length / 8) {
            std::string text;
            std::vector<std::uint32_t> wanted;
            for (int word = 0; word < 12; ++word) {
                if (word > 0) {
                    text.push_back(' ');
                    wanted.push_back(' ');
                }
                std::vector<std::uint32_t> letters;
                for (int i = 0; i < length; ++i) letters.push_back('a' + below(4));
                text.append(letters.begin(), letters.end());
                letters = merged(letters, pairs);
                wanted.insert(wanted.end(), letters.begin(), letters.end());
            }
            expect(encoder.encode(text) == wanted, "merges");
        }
    }
}

void check_parts() {
    const Pairs pairs = {{{'a', 'b'}, {1, 300}}, {{' ', 'a'}, {0, 301}}};
    const Tables tables = make_tables(pairs);
    const BpeEncoder encoder(tables.view());
    const auto is = [&](const char* text, const std::vector<std::uint32_t>& wanted) {
        expect(encoder.encode(text) == wanted, text);
    };
    is("", {});
    is("ab ab", {300, 301, 'b'});
    is("ab  ab", {300, ' ', 301, 'b'});
    is("a'b", {'a', '\'', 'b'});
    is("azb", {300});
    is("<x>a", {kNumIds, 'a'});
    is("<x><x>y", {kNumIds, kNumIds, 'y'});
    is("<x", {'<', 'x'});
    is("a\xCC\x80", {0xC3, 0xA0});
    is("a\xCC\x81\xCC\x80", {0xC3, 0xA0, 0xCC, 0x81});
    is("a\xCC\x82\xCC\x80", {'a', 0xCC, 0x82, 0xCC, 0x80});
    is("XY", {23 * 26 + 24});
}

void check_characters() {
    Tables tables = make_tables({{{'a', 500}, {0, 300}}, {{300, 0xC3}, {1, 301}}});
    tables.words["characters"] = {'a', 'z', 0xE9};
    tables.words["character_ids"] = {'a', 'z', 500};
    tables.words["patterns"] = {};
    tables.bytes["added_normal"] = {0, 0};
    tables.words["decomposing"] = {};
    tables.words["part_starts"] = {0};
    tables.words["parts"] = {};
    tables.bytes["normal"].assign(7, 0);
    tables.words["letters"]['!'] = kNoId;
    for (const std::uint32_t unknown : {std::uint32_t{600}, kNoId}) {
        tables.words["unknown"] = {unknown};
        const BpeEncoder encoder(tables.view());
        const std::vector<std::uint32_t> marks = unknown == kNoId ? std::vector<std::uint32_t>() : std::vector{unknown};
        std::vector<std::uint32_t> wanted = {300, 'b', 301, 0xA8, 'z'};  // a byte merges as any token does
        wanted.insert(wanted.end(), marks.begin(), marks.end());
        wanted.push_back('a');
        wanted.insert(wanted.end(), marks.begin(), marks.end());
        expect(encoder.encode("a\xC3\xA9"
                              "ba\xC3\xA9\xC3\xA8z!!a!") == wanted,
               "characters");
    }
    tables.words["characters"] = {' ', 'a', 0x2581};
    tables.words["character_ids"] = {' ', 'a', 600};
    const auto is = [&](std::uint32_t spaces, const char* text, const std::vector<std::uint32_t>& wanted) {
        tables.words["spaces"] = {spaces};
        expect(BpeEncoder(tables.view()).encode(text) == wanted, text);
    };
    is(0, " a", {' ', 'a'});
    is(kReplaceSpaces, " a", {600, 'a'});
    is(kReplaceSpaces | kPrefixParts, " a<x>a", {600, 600, 'a', kNumIds, 600, 'a'});
    is(kReplaceSpaces | kPrefixParts | kUnlessThereIsOne, " a<x>a", {600, 'a', kNumIds, 600, 'a'});
    is(kReplaceSpaces | kPrefixText, "a<x>a", {600, 'a', kNumIds, 'a'});
    is(kReplaceSpaces | kPrefixText, "<x>a", {kNumIds, 'a'});
    is(kPrefixText | kUnlessThereIsOne, "\xE2\x96\x81", {600});
    is(kPrefixText | kUnlessThereIsOne, " ", {600, ' '});
}

std::string random_bytes() {
    static const std::vector<std::string> pieces = {
        "a",        "b",    " ",    "'",    "z",        "<x>", "<x><x>y", "\n",     "à",      "\xCC",   "\xCC\x80",
        "\xCC\x81", "\xF4", "\x90", "\xFF", "\xE0\x80", "XY",  "각",      "\u1100", "\u1161", "\u11a8", "🦊"};
    std::string text;
    for (std::uint32_t i = below(120); i > 0; --i) {
        if (below(8) == 0) {
            append_utf8(text, below(0x4000));
        } else if (below(4) == 0) {
            text.push_back(static_cast<char>(below(256)));
        } else {
            text += pieces[below(static_cast<std::uint32_t>(pieces.size()))];
        }
    }
    return text;
}

// As BpeEncoder::encode, but a read beyond the end of the text is seen.
std::vector<std::uint32_t> encode(const BpeEncoder& encoder, const std::string& text) {
    const std::vector<char> exact(text.begin(), text.end());
    return encoder.encode({exact.data(), exact.size()});
}

void check_any_bytes() {
    const Tables tables = make_tables(random_pairs(below));
    const BpeEncoder encoder(tables.view());
    for (int round = 0; round < 3000; ++round) {
        const std::string text = random_bytes();
        for (const std::uint32_t id : encode(encoder, text)) expect(id <= kNumIds, "an id is known");
    }
}

std::uint32_t damaged(std::uint32_t value) {
    switch (below(5)) {
        case 0:
            return 0;
        case 1:
            return kMany;
        case 2:
            return value + 1;
        case 3:
            return value - 1;
        default:
            return value ^ std::uint32_t{1} << below(32);
    }
}

template <typename Number>
void damage_one(std::map<std::string, std::vector<Number>>& tables) {
    auto at = tables.begin();
    std::advance(at, below(static_cast<std::uint32_t>(tables.size())));
    std::vector<Number>& table = at->second;
    if (table.empty()) return;
    // Of large tables the beginning is what the texts ask for.
    Number& value = table[below(std::min(std::uint32_t{64}, static_cast<std::uint32_t>(table.size())))];
    value = static_cast<Number>(damaged(value));
    if (below(8) == 0) table.resize(table.size() + below(3) - 1);
}

// Whatever a table says, it is refused or does no harm.
void check_damage() {
    const Tables whole = make_tables(random_pairs(below));
    int refused = 0, used = 0;
    for (int round = 0; round < 20'000; ++round) {
        Tables tables = whole;
        for (std::uint32_t times = 1 + below(3); times > 0; --times) {
            if (below(3) == 0) {
                damage_one(tables.bytes);
            } else {
                damage_one(tables.words);
            }
        }
        for (auto& [name, table] : tables.words) table.shrink_to_fit();
        for (auto& [name, table] : tables.bytes) table.shrink_to_fit();
        try {
            const BpeEncoder encoder(tables.view());
            for (int i = 0; i < 5; ++i) encode(encoder, random_bytes());
            ++used;
        } catch (const std::invalid_argument&) {
            ++refused;
        }
    }
    // Too rare to count on.
    Tables tables = whole;
    tables.words["steps"][10] = 3;  // a choice of all alternatives from this one on, and many more
    tables.words["steps"][11] = kMany;
    try {
        const BpeEncoder encoder(tables.view());
        expect(false, "a choice of what there is not is refused");
    } catch (const std::invalid_argument&) {
    }
    expect(refused > 100 && used > 100, "some damage is refused, some is not");
}

void check_threads() {
    const Tables tables = make_tables(random_pairs(below));
    const BpeEncoder encoder(tables.view());
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i) texts.push_back(random_bytes());
    std::vector<std::vector<std::vector<std::uint32_t>>> found(4);
    std::vector<std::thread> threads;
    for (auto& ids : found) {
        threads.emplace_back([&encoder, &texts, &ids] {
            for (const std::string& text : texts) ids.push_back(encoder.encode(text));
        });
    }
    for (std::thread& thread : threads) thread.join();
    expect(std::all_of(found.begin(), found.end(), [&](const auto& ids) { return ids == found[0]; }),
           "the same ids on every thread");
}

}  // namespace
}  // namespace windlass

int main() {
    windlass::check_merges();
    windlass::check_parts();
    windlass::check_characters();
    windlass::check_any_bytes();
    windlass::check_damage();
    windlass::check_threads();
    std::puts("  nothing wrong");
    return 0;
}
