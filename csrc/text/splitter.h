// Cuts text into words, by the patterns that tokenizers cut with: regular expressions of a simple kind.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/characters.h"

namespace windlass {

// A pattern is a list of alternatives, of which the first that matches counts; an alternative is a list of steps. Text
// that a pattern does not match stays, as a piece of its own, or is dropped. Each pattern cuts the pieces of the one
// before it. Tables are copied or borrowed; safe to use from many threads.
class Splitter {
  public:
    static constexpr std::size_t kStepNumbers = 4, kAlternativeNumbers = 2, kPatternNumbers = 3;

    // The numbers of all steps (see Step; the set as the number of its bit), alternatives (first step, number of steps)
    // and patterns (first alternative, number of alternatives, whether to drop what does not match).
    Splitter(const CharacterTable& characters, std::span<const std::uint32_t> steps,
             std::span<const std::uint32_t> alternatives, std::span<const std::uint32_t> patterns);

    // Calls `emit` with each word, from the first to the last.
    template <typename Emit>
    void split(std::string_view text, const Emit& emit) const {
        split(0, text.data(), text.data() + text.size(), emit);
    }

  private:
    enum class Kind : std::uint32_t {
        kRepeat,      // `least` to `most` characters of a set, as many as there are; fewer if the rest asks for it
        kRepeatOnly,  // the same, but never fewer
        kNotBefore,   // no character of the set follows
        kOneOf,       // the first of some alternatives that matches, or nothing; the last step, never taken back
    };
    struct Step {
        Kind kind;
        std::uint32_t set;          // a bit of CharacterTable::sets
        std::uint32_t least, most;  // or the first alternative and their number
    };
    struct Alternative {
        std::uint32_t first, count;
    };
    struct Pattern {
        std::uint32_t first, count;
        bool drops;
    };

    template <typename Emit>
    void split(std::size_t level, const char* at, const char* end, const Emit& emit) const {
        if (at == end) return;
        if (level == patterns_.size()) {
            emit(std::string_view(at, static_cast<std::size_t>(end - at)));
            return;
        }
        const Pattern& pattern = patterns_[level];
        const char* gap = at;
        while (at < end) {
            const char* const after = match(pattern, at, end);
            if (after == nullptr) {
                at += decode(at, end).size;
                continue;
            }
            if (!pattern.drops) split(level + 1, gap, at, emit);
            split(level + 1, at, after, emit);
            gap = at = after;
        }
        if (!pattern.drops) split(level + 1, gap, end, emit);
    }

    // The end of the match at `at`, or nullptr when there is none, or an empty one.
    const char* match(const Pattern& pattern, const char* at, const char* end) const;
    const char* match(const Step* step, const Step* last, const char* at, const char* end) const;

    const CharacterTable& characters_;
    std::vector<Step> steps_;
    std::vector<Alternative> alternatives_;
    std::vector<Pattern> patterns_;
};

}  // namespace windlass
