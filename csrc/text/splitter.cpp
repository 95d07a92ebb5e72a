#include "text/splitter.h"

namespace windlass {
namespace {

constexpr std::uint32_t kMostSteps = 16;    // of an alternative: bounds the depth of the recursion
constexpr std::uint32_t kMostFlexible = 3;  // of them, that can take fewer characters: what bounds the time
constexpr std::uint32_t kMostPatterns = 16;
constexpr std::uint32_t kNumSets = 32;

}  // namespace

Splitter::Splitter(const CharacterTable& characters, std::span<const std::uint32_t> steps,
                   std::span<const std::uint32_t> alternatives, std::span<const std::uint32_t> patterns)
    : characters_(characters) {
    require(steps.size() % kStepNumbers == 0 && alternatives.size() % kAlternativeNumbers == 0 &&
                patterns.size() % kPatternNumbers == 0 && patterns.size() / kPatternNumbers <= kMostPatterns,
            "the patterns are cut off");
    for (std::size_t i = 0; i < steps.size(); i += kStepNumbers) {
        require(steps[i] <= static_cast<std::uint32_t>(Kind::kOneOf) && steps[i + 1] < kNumSets, "an unknown step");
        steps_.push_back({static_cast<Kind>(steps[i]), std::uint32_t{1} << steps[i + 1], steps[i + 2], steps[i + 3]});
    }
    for (std::size_t i = 0; i < alternatives.size(); i += kAlternativeNumbers) {
        const Alternative one = {alternatives[i], alternatives[i + 1]};
        require(one.first <= steps_.size() && one.count <= steps_.size() - one.first && one.count <= kMostSteps,
                "an alternative has steps that there are not");
        std::uint32_t flexible = 0;
        for (std::uint32_t step = one.first; step + 1 < one.first + one.count; ++step) {
            flexible += steps_[step].kind == Kind::kRepeat && steps_[step].least < steps_[step].most ? 1 : 0;
        }
        require(flexible <= kMostFlexible, "an alternative has too many ways to match");
        alternatives_.push_back(one);
    }
    const auto has_choice = [&](const Alternative& one) {
        for (std::uint32_t i = 0; i < one.count; ++i) {
            if (steps_[one.first + i].kind == Kind::kOneOf) return true;
        }
        return false;
    };
    for (const Step& step : steps_) {
        if (step.kind != Kind::kOneOf) continue;
        require(step.least <= alternatives_.size() && step.most <= alternatives_.size() - step.least,
                "a step has alternatives that there are not");
        for (std::uint32_t i = 0; i < step.most; ++i) {
            require(!has_choice(alternatives_[step.least + i]), "a choice within a choice");
        }
    }
    for (std::size_t i = 0; i < patterns.size(); i += kPatternNumbers) {
        const Pattern one = {patterns[i], patterns[i + 1], patterns[i + 2] != 0};
        require(one.first <= alternatives_.size() && one.count <= alternatives_.size() - one.first,
                "a pattern has alternatives that there are not");
        patterns_.push_back(one);
    }
}

const char* Splitter::match(const Pattern& pattern, const char* at, const char* end) const {
    for (std::uint32_t i = 0; i < pattern.count; ++i) {
        const Alternative& one = alternatives_[pattern.first + i];
        const Step* const first = steps_.data() + one.first;
        const char* const after = match(first, first + one.count, at, end);
        if (after != nullptr && after != at) return after;
    }
    return nullptr;
}

const char* Splitter::match(const Step* step, const Step* last, const char* at, const char* end) const {
    for (; step != last; ++step) {
        if (step->kind == Kind::kNotBefore) {
            if (at < end && (characters_.sets(decode(at, end).code) & step->set) != 0) return nullptr;
            continue;
        }
        if (step->kind == Kind::kOneOf) {
            for (std::uint32_t i = 0; i < step->most; ++i) {
                const Alternative& one = alternatives_[step->least + i];
                const Step* const first = steps_.data() + one.first;
                const char* const after = match(first, first + one.count, at, end);
                if (after != nullptr) {
                    at = after;
                    break;
                }
            }
            continue;
        }
        const char* const begin = at;
        std::uint32_t count = 0;
        while (count < step->most && at < end) {
            const Character next = decode(at, end);
            if ((characters_.sets(next.code) & step->set) == 0) break;
            at += next.size;
            ++count;
        }
        if (count < step->least) return nullptr;
        if (step->kind == Kind::kRepeatOnly || count == step->least || step + 1 == last) continue;
        for (;; --count) {
            const char* const after = match(step + 1, last, at, end);
            // In bytes that are not UTF-8 there may be fewer characters on the way back.
            if (after != nullptr || count == step->least || at == begin) return after;
            do {
                --at;
            } while (at > begin && continues(*at));
        }
    }
    return at;
}

}  // namespace windlass
