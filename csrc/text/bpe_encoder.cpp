#include "text/bpe_encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <string>

#include "runtime/hash.h"

namespace windlass {
namespace {

// GPT-2's printable stand-ins for bytes: printable Latin-1 for itself, the others from U+0100 on.
std::array<std::uint32_t, 256> alphabet() {
    std::array<std::uint32_t, 256> spelled{};
    std::uint32_t next = 0x100;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        const bool prints =
            (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
        spelled[byte] = prints ? byte : next++;
    }
    return spelled;
}

}  // namespace

// One encoding. Words come again and again, so it remembers where in the ids some of them are.
class BpeEncoder::Call {
  public:
    Call(const BpeEncoder& encoder, std::size_t bytes)
        : encoder_(encoder), known_(std::bit_ceil(std::clamp(bytes / 16, kLeastKnown, kMostKnown))) {
        ids_.reserve(bytes / 4 + 16);
    }

    std::vector<std::uint32_t> take() { return std::move(ids_); }
    void add(std::uint32_t id) { ids_.push_back(id); }

    void add_text(std::string_view text, bool is_first) {
        if (encoder_.spaces_ != 0) text = normalized_.emplace_back(encoder_.spaced(text, is_first));
        if (encoder_.normalizes_ && !encoder_.normalizer_.is_normal(text)) {
            text = normalized_.emplace_back(encoder_.normalizer_.normalized(text));
        }
        const auto add_words = [this](std::string_view part) {
            encoder_.splitter_.split(part, [this](std::string_view word) { add_word(word); });
        };
        encoder_.added_normal_.split(text, add_words, [this](std::uint32_t id) { add(id); });
    }

  private:
    static constexpr std::size_t kLeastKnown = 16, kMostKnown = 4096, kLongestKnown = 64;

    struct Known {
        const char* text = nullptr;
        std::uint32_t size = 0, first = 0, count = 0;
    };

    void add_word(std::string_view word) {
        if (word.size() > kLongestKnown) {
            make(word);
            return;
        }
        const std::uint64_t hash = hash_bytes(word.data(), word.size(), kHashStart + word.size());
        Known& known = known_[hash & (known_.size() - 1)];
        const std::size_t begin = ids_.size();
        if (known.size == word.size() && std::memcmp(known.text, word.data(), word.size()) == 0) {
            ids_.resize(begin + known.count);
            std::copy_n(ids_.begin() + known.first, known.count, ids_.begin() + static_cast<std::ptrdiff_t>(begin));
            return;
        }
        make(word);
        if (begin > kNoId) return;
        known = {word.data(), static_cast<std::uint32_t>(word.size()), static_cast<std::uint32_t>(begin),
                 static_cast<std::uint32_t>(ids_.size() - begin)};
    }

    void make(std::string_view word) {
        const std::uint32_t whole = encoder_.whole_word(word);
        if (whole != kNoId) {
            ids_.push_back(whole);
            return;
        }
        word_.clear();
        word_.reserve(word.size());
        if (encoder_.codes_.empty()) {
            encoder_.spell_bytes(word, word_);
        } else {
            encoder_.spell_characters(word, word_);
        }
        encoder_.merger_.merge(word_);
        ids_.insert(ids_.end(), word_.begin(), word_.end());
    }

    const BpeEncoder& encoder_;
    std::vector<std::uint32_t> ids_;
    std::vector<Known> known_;
    std::vector<std::uint32_t> word_;
    std::deque<std::string> normalized_;  // what `known_` points to has to stay where it is
};

BpeEncoder::BpeEncoder(const BpeTables& tables)
    : codes_(tables.characters),
      code_ids_(tables.character_ids),
      spelled_(alphabet()),
      entry_starts_(tables.entry_starts),
      entries_(tables.entries),
      whole_words_(tables.whole_words),
      normalizes_(tables.normalizes),
      characters_(tables.blocks, tables.kinds, tables.sets, tables.combining, tables.normal),
      normalizer_(characters_, tables.decomposing, tables.part_starts, tables.parts, tables.compositions,
                  tables.composed),
      splitter_(characters_, tables.steps, tables.alternatives, tables.patterns),
      merger_(tables.pair_starts, tables.pair_rights, tables.pair_ranks, tables.pair_joined),
      added_(added_tokens(tables, false)),
      added_normal_(added_tokens(tables, true)) {
    const std::size_t num_ids = merger_.num_ids();
    require(entry_starts_.size() == num_ids + 1 && divides(entry_starts_, entries_.size()),
            "the table of tokens is cut off");
    require(tables.letters.size() == letters_.size(), "the table of letters is cut off");
    for (std::size_t byte = 0; byte < letters_.size(); ++byte) {
        letters_[byte] = tables.letters[byte];
        require(letters_[byte] < num_ids || letters_[byte] == kNoId, "a letter is an unknown token");
    }
    require(code_ids_.size() == codes_.size() && tables.unknown.size() == 1, "the table of characters is cut off");
    for (const std::uint32_t id : code_ids_) require(id < num_ids, "a character is an unknown token");
    unknown_ = tables.unknown[0];
    require(unknown_ < num_ids || unknown_ == kNoId, "the token of unknown characters is unknown itself");
    require(tables.spaces.size() == 1 && tables.spaces[0] <= kAllSpaces, "an unknown way to write spaces");
    spaces_ = tables.spaces[0];
    ascii_.fill(kNoId);
    for (std::size_t i = 0; i < codes_.size(); ++i) {
        if (codes_[i] < ascii_.size()) ascii_[codes_[i]] = code_ids_[i];
    }
    for (const std::uint32_t id : whole_words_) {
        require(id < num_ids, "a word is an unknown token");
        longest_whole_ = std::max(longest_whole_, entry(id).size());
    }
    for (const std::uint32_t id : tables.added_ids) {
        require(id <= num_ids || id == kNoId,
                "an added token is unknown");  // the tokenizer's own one is beyond the others
    }
}

AddedTokens BpeEncoder::added_tokens(const BpeTables& tables, bool normal) const {
    require(divides(tables.added_starts, tables.added.size()) &&
                tables.added_ids.size() + 1 == tables.added_starts.size() &&
                tables.added_normal.size() == tables.added_ids.size(),
            "the table of added tokens is cut off");
    std::vector<AddedTokens::Token> tokens;
    for (std::size_t i = 0; i < tables.added_ids.size(); ++i) {
        if ((tables.added_normal[i] != 0) != normal) continue;
        const std::uint32_t begin = tables.added_starts[i], end = tables.added_starts[i + 1];
        tokens.push_back({{tables.added.data() + begin, end - begin}, tables.added_ids[i]});
    }
    return AddedTokens(std::move(tokens));
}

std::vector<std::uint32_t> BpeEncoder::encode(std::string_view text) const {
    require(text.size() <= kMostBytes, "the text is longer than 2 GiB");
    Call call(*this, text.size());
    const auto add_text = [&](std::string_view part) { call.add_text(part, part.data() == text.data()); };
    added_.split(text, add_text, [&](std::uint32_t id) { call.add(id); });
    return call.take();
}

std::string BpeEncoder::spaced(std::string_view part, bool is_first) const {
    static constexpr std::string_view kSpace = "\xE2\x96\x81";
    const bool has_one = part.starts_with(kSpace) || ((spaces_ & kReplaceSpaces) != 0 && part.starts_with(' '));
    const bool wants_one = (spaces_ & kPrefixParts) != 0 || ((spaces_ & kPrefixText) != 0 && is_first);
    std::string out;
    out.reserve(part.size() + part.size() / 4 + kSpace.size());
    if (wants_one && !(has_one && (spaces_ & kUnlessThereIsOne) != 0)) out += kSpace;
    for (const char byte : part) {
        if (byte == ' ' && (spaces_ & kReplaceSpaces) != 0) {
            out += kSpace;
        } else {
            out.push_back(byte);
        }
    }
    require(out.size() <= kMostBytes, "the text is longer than 2 GiB");
    return out;
}

void BpeEncoder::spell_bytes(std::string_view word, std::vector<std::uint32_t>& out) const {
    for (const char byte : word) {
        const std::uint32_t id = letters_[static_cast<unsigned char>(byte)];
        if (id != kNoId) out.push_back(id);
    }
}

// Unknown characters beside each other are one token.
void BpeEncoder::spell_characters(std::string_view word, std::vector<std::uint32_t>& out) const {
    const char* at = word.data();
    const char* const end = at + word.size();
    bool after_unknown = false;
    while (at < end) {
        const Character one = decode(at, end);
        const std::string_view bytes(at, one.size);
        at += one.size;
        std::uint32_t id = kNoId;
        if (one.code < ascii_.size()) {
            id = ascii_[one.code];
        } else {
            const auto found = std::lower_bound(codes_.begin(), codes_.end(), one.code);
            if (found != codes_.end() && *found == one.code)
                id = code_ids_[static_cast<std::size_t>(found - codes_.begin())];
        }
        const auto is_token = [this](char byte) { return letters_[static_cast<unsigned char>(byte)] != kNoId; };
        const bool is_unknown = id == kNoId && !std::all_of(bytes.begin(), bytes.end(), is_token);
        if (id != kNoId) {
            out.push_back(id);
        } else if (!is_unknown) {
            spell_bytes(bytes, out);
        } else if (!after_unknown && unknown_ != kNoId) {
            out.push_back(unknown_);
        }
        after_unknown = is_unknown;
    }
}

std::string_view BpeEncoder::entry(std::uint32_t id) const {
    return {entries_.data() + entry_starts_[id], entry_starts_[id + 1] - entry_starts_[id]};
}

// The token that is the word as it stands, or kNoId.
std::uint32_t BpeEncoder::whole_word(std::string_view word) const {
    if (whole_words_.empty() || word.size() > longest_whole_) return kNoId;
    std::string written;
    for (const char byte : word) append_utf8(written, spelled_[static_cast<unsigned char>(byte)]);
    const auto found = std::lower_bound(whole_words_.begin(), whole_words_.end(), written,
                                        [this](std::uint32_t id, const std::string& text) { return entry(id) < text; });
    return found != whole_words_.end() && entry(*found) == written ? *found : kNoId;
}

}  // namespace windlass
