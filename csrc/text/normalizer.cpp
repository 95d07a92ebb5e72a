#include "text/normalizer.h"

#include <algorithm>

namespace windlass {
namespace {

// Hangul syllables and the letters that they are made of (The Unicode Standard, 3.12).
constexpr std::uint32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr std::uint32_t kNumLeading = 19, kNumVowels = 21, kNumTrailing = 28;
constexpr std::uint32_t kNumSyllables = kNumLeading * kNumVowels * kNumTrailing;

}  // namespace

Normalizer::Normalizer(const CharacterTable& characters, std::span<const std::uint32_t> decomposing,
                       std::span<const std::uint32_t> part_starts, std::span<const std::uint32_t> parts,
                       std::span<const std::uint64_t> pairs, std::span<const std::uint32_t> composed)
    : characters_(characters),
      decomposing_(decomposing),
      part_starts_(part_starts),
      parts_(parts),
      pairs_(pairs),
      composed_(composed) {
    require(part_starts.size() == decomposing.size() + 1 && divides(part_starts, parts.size()),
            "the table of decompositions is cut off");
    require(composed.size() == pairs.size(), "the table of compositions is cut off");
    const auto known = [](std::uint32_t code) { return code < kNumCharacters; };
    require(std::all_of(parts.begin(), parts.end(), known), "a decomposition has an unknown character");
    require(std::all_of(composed.begin(), composed.end(), known), "a composition is an unknown character");
}

bool Normalizer::is_normal(std::string_view text) const {
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at < end) {
        if (static_cast<unsigned char>(*at) < 0x80) {
            ++at;
            continue;
        }
        const Character one = decode(at, end);
        if ((characters_.normal(one.code) & CharacterTable::kUnsettled) != 0) return false;
        at += one.size;
    }
    return true;
}

std::string Normalizer::normalized(std::string_view text) const {
    std::vector<Mark> marks;
    marks.reserve(text.size() / 2);
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at < end) {
        const Character one = decode(at, end);
        decompose(one.code, marks);
        at += one.size;
    }
    const auto starts = [](const Mark& mark) { return mark.combining == 0; };
    for (auto from = marks.begin(); from != marks.end();) {
        from = std::find_if_not(from, marks.end(), starts);
        const auto to = std::find_if(from, marks.end(), starts);
        std::stable_sort(from, to, [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
        from = to;
    }
    compose(marks);
    std::string out;
    out.reserve(text.size());
    for (const Mark& mark : marks) append_utf8(out, mark.code);
    return out;
}

void Normalizer::decompose(std::uint32_t code, std::vector<Mark>& out) const {
    if (code - kSyllables < kNumSyllables) {
        const std::uint32_t index = code - kSyllables, trailing = index % kNumTrailing;
        out.push_back({kLeading + index / (kNumVowels * kNumTrailing), 0});
        out.push_back({kVowels + index / kNumTrailing % kNumVowels, 0});
        if (trailing != 0) out.push_back({kTrailing + trailing, 0});
        return;
    }
    if ((characters_.normal(code) & CharacterTable::kDecomposes) != 0) {
        const auto found = std::lower_bound(decomposing_.begin(), decomposing_.end(), code);
        if (found != decomposing_.end() && *found == code) {
            const auto index = static_cast<std::size_t>(found - decomposing_.begin());
            for (std::uint32_t i = part_starts_[index]; i < part_starts_[index + 1]; ++i) {
                out.push_back({parts_[i], characters_.combining(parts_[i])});
            }
            return;
        }
    }
    out.push_back({code, characters_.combining(code)});
}

// Joins each character to the last one that does not combine, unless another stands between them that keeps them apart.
void Normalizer::compose(std::vector<Mark>& marks) const {
    std::size_t kept = 0, starter = 0;
    bool has_starter = false;
    for (const Mark mark : marks) {
        const bool adjacent = has_starter && starter + 1 == kept;
        if (has_starter && (adjacent || marks[kept - 1].combining < mark.combining) &&
            (characters_.normal(mark.code) & CharacterTable::kJoinsBefore) != 0) {
            const std::uint32_t joined = join(marks[starter].code, mark.code);
            if (joined != kNoId) {
                marks[starter].code = joined;
                continue;
            }
        }
        if (mark.combining == 0) {
            starter = kept;
            has_starter = true;
        }
        marks[kept++] = mark;
    }
    marks.resize(kept);
}

std::uint32_t Normalizer::join(std::uint32_t first, std::uint32_t second) const {
    if (first - kLeading < kNumLeading && second - kVowels < kNumVowels) {
        return kSyllables + ((first - kLeading) * kNumVowels + (second - kVowels)) * kNumTrailing;
    }
    if (first - kSyllables < kNumSyllables && (first - kSyllables) % kNumTrailing == 0 &&
        second - kTrailing - 1 < kNumTrailing - 1) {
        return first + (second - kTrailing);
    }
    const std::uint64_t pair = static_cast<std::uint64_t>(first) << 32 | second;
    const auto found = std::lower_bound(pairs_.begin(), pairs_.end(), pair);
    if (found == pairs_.end() || *found != pair) return kNoId;
    return composed_[static_cast<std::size_t>(found - pairs_.begin())];
}

}  // namespace windlass
