#include "text/merger.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>

namespace windlass {
namespace {

constexpr std::size_t kShort = 32;  // letters, up to which looking at all of them beats keeping them in order

// A letter or what has become of it, between its neighbours.
struct Node {
    std::uint32_t id;
    std::uint32_t pair;  // with the one after it, or kNoId
    std::uint32_t before, after;
};

}  // namespace

Merger::Merger(std::span<const std::uint32_t> starts, std::span<const std::uint32_t> rights,
               std::span<const std::uint32_t> ranks, std::span<const std::uint32_t> joined)
    : starts_(starts), rights_(rights), ranks_(ranks), joined_(joined) {
    require(divides(starts, rights.size()) && ranks.size() == rights.size() && joined.size() == rights.size() &&
                starts.size() <= kNoId,
            "the tables of pairs are cut off");
    for (const std::uint32_t id : joined) require(id < num_ids(), "a pair becomes an unknown token");
}

std::uint32_t Merger::find(std::uint32_t left, std::uint32_t right) const {
    const auto from = rights_.begin() + starts_[left], to = rights_.begin() + starts_[left + 1];
    const auto found = std::lower_bound(from, to, right);
    return found != to && *found == right ? static_cast<std::uint32_t>(found - rights_.begin()) : kNoId;
}

void Merger::merge(std::vector<std::uint32_t>& word) const {
    if (word.size() < 2) return;
    if (word.size() <= kShort) {
        merge_short(word);
    } else {
        merge_long(word);
    }
}

void Merger::merge_short(std::vector<std::uint32_t>& word) const {
    std::array<std::uint32_t, kShort> pairs;
    std::size_t count = word.size();
    for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = find(word[i], word[i + 1]);
    for (;;) {
        std::size_t best = count;
        for (std::size_t i = 0; i + 1 < count; ++i) {
            if (pairs[i] != kNoId && (best == count || ranks_[pairs[i]] < ranks_[pairs[best]])) best = i;
        }
        if (best == count) break;
        word[best] = joined_[pairs[best]];
        const auto removed = static_cast<std::ptrdiff_t>(best + 1);
        word.erase(word.begin() + removed);
        std::copy(pairs.begin() + removed, pairs.begin() + static_cast<std::ptrdiff_t>(count),
                  pairs.begin() + removed - 1);
        --count;
        if (best + 1 < count) pairs[best] = find(word[best], word[best + 1]);
        if (best > 0) pairs[best - 1] = find(word[best - 1], word[best]);
    }
}

void Merger::merge_long(std::vector<std::uint32_t>& word) const {
    const auto count = static_cast<std::uint32_t>(word.size());
    std::vector<Node> nodes(count);
    std::vector<std::uint64_t> waiting;  // a heap of ranks and places; what is out of date is left in it
    waiting.reserve(count);
    const auto key = [&](std::uint32_t place) {
        return static_cast<std::uint64_t>(ranks_[nodes[place].pair]) << 32 | place;
    };
    for (std::uint32_t i = 0; i < count; ++i) {
        nodes[i] = {word[i], i + 1 < count ? find(word[i], word[i + 1]) : kNoId, i == 0 ? kNoId : i - 1,
                    i + 1 < count ? i + 1 : kNoId};
        if (nodes[i].pair != kNoId) waiting.push_back(key(i));
    }
    const std::greater<> later;
    std::make_heap(waiting.begin(), waiting.end(), later);
    const auto consider = [&](std::uint32_t place) {
        Node& node = nodes[place];
        node.pair = node.after == kNoId ? kNoId : find(node.id, nodes[node.after].id);
        if (node.pair == kNoId) return;
        waiting.push_back(key(place));
        std::push_heap(waiting.begin(), waiting.end(), later);
    };
    while (!waiting.empty()) {
        std::pop_heap(waiting.begin(), waiting.end(), later);
        const std::uint64_t next = waiting.back();
        waiting.pop_back();
        const auto place = static_cast<std::uint32_t>(next);
        Node& node = nodes[place];
        if (node.pair == kNoId || key(place) != next) continue;
        Node& gone = nodes[node.after];
        node.id = joined_[node.pair];
        node.after = gone.after;
        gone.pair = kNoId;
        if (node.after != kNoId) nodes[node.after].before = place;
        consider(place);
        if (node.before != kNoId) consider(node.before);
    }
    std::size_t kept = 0;
    for (std::uint32_t i = 0; i != kNoId; i = nodes[i].after) word[kept++] = nodes[i].id;
    word.resize(kept);
}

}  // namespace windlass
