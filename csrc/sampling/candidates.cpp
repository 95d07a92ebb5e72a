#include "sampling/candidates.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace windlass {
namespace {

// So few are sorted where more are halved first.
constexpr std::size_t kSorted = 128;

constexpr auto kLikelier = [](const Candidates::Candidate& a, const Candidates::Candidate& b) {
    return a.order < b.order;
};

}  // namespace

void Candidates::gather(const BlockedRow& row, float gap, const KernelTable& kernels, double inverse_temperature) {
    items_.clear();
    logits_.clear();
    for (std::int64_t block = 0; block < row.blocks(); ++block) {
        if (!(row.gap(row.maxima[block]) <= gap)) continue;
        const std::int64_t begin = block * kSamplingBlock, end = std::min(begin + kSamplingBlock, row.size);
        for (std::int64_t i = begin; i < end; ++i) {
            const float below = row.gap(row.logits[i]);
            if (!(below <= gap)) continue;
            items_.push_back(
                {std::uint64_t{std::bit_cast<std::uint32_t>(below)} << 32 | static_cast<std::uint64_t>(i), 0});
            logits_.push_back(row.logits[i]);
        }
    }
    weights_.resize(items_.size());
    kernels.likelihoods(logits_.data(), static_cast<std::int64_t>(items_.size()), row.largest, inverse_temperature,
                        weights_.data());
    for (std::size_t i = 0; i < items_.size(); ++i) items_[i].weight = weights_[i];
}

void Candidates::gather_likeliest(const BlockedRow& row, std::int64_t count, const KernelTable& kernels,
                                  double inverse_temperature) {
    float gap = std::numeric_limits<float>::infinity();
    if (count < row.blocks()) {
        // That many blocks have a maximum, and so a token, at least as likely as the one found here.
        heads_.assign(row.maxima, row.maxima + row.blocks());
        std::nth_element(heads_.begin(), heads_.begin() + (count - 1), heads_.end(), std::greater<>());
        gap = row.gap(heads_[static_cast<std::size_t>(count - 1)]);
    }
    gather(row, gap, kernels, inverse_temperature);
}

double Candidates::total_weight() const {
    double sum = 0;
    for (const Candidate& one : items_) sum += one.weight;
    return sum;
}

void Candidates::keep(std::int64_t count) {
    if (count >= static_cast<std::int64_t>(items_.size())) return;
    std::nth_element(items_.begin(), items_.begin() + count, items_.end(), kLikelier);
    items_.resize(static_cast<std::size_t>(count));
}

void Candidates::keep_weight(double weight) {
    const std::size_t last = find([&](double sum) { return sum >= weight; });
    items_.resize(std::min(last + 1, items_.size()));
}

void Candidates::keep_each(double weight) {
    std::erase_if(items_, [&](const Candidate& one) { return one.weight < weight; });
}

std::int64_t Candidates::beyond(double weight) {
    const std::size_t found = find([&](double sum) { return sum > weight; });
    if (found < items_.size() && items_[found].weight > 0) return items_[found].id();
    // Rounding: the last one that weighs anything.
    const Candidate* last = nullptr;
    for (const Candidate& one : items_) {
        if (one.weight > 0 && (last == nullptr || last->order < one.order)) last = &one;
    }
    return last->id();
}

const std::vector<Candidates::Candidate>& Candidates::sorted() {
    std::sort(items_.begin(), items_.end(), kLikelier);
    return items_;
}

template <typename Reached>
std::size_t Candidates::find(const Reached& reached) {
    std::size_t begin = 0, end = items_.size();
    const auto at = [&](std::size_t i) { return items_.begin() + static_cast<std::ptrdiff_t>(i); };
    double before = 0;  // the weight of all candidates in front of `begin`
    while (end - begin > kSorted) {
        const std::size_t middle = begin + (end - begin) / 2;
        std::nth_element(at(begin), at(middle), at(end), kLikelier);
        double sum = before;
        for (std::size_t i = begin; i < middle; ++i) sum += items_[i].weight;
        if (reached(sum)) {
            end = middle;
        } else {
            begin = middle;
            before = sum;
        }
    }
    std::sort(at(begin), at(end), kLikelier);
    for (std::size_t i = begin; i < end; ++i) {
        before += items_[i].weight;
        if (reached(before)) return i;
    }
    return end;
}

}  // namespace windlass
