// The likeliest tokens of a row, without sorting the row.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace windlass {

// A row of logits and the largest of each of its blocks. Borrowed. Holds no NaN, and `largest` is finite.
struct BlockedRow {
    const float* logits;
    std::int64_t size;
    const float* maxima;
    float largest;

    std::int64_t blocks() const { return (size + kSamplingBlock - 1) / kSamplingBlock; }
    // How far a logit is below the largest. Order and weights depend on this difference alone, rounded as it is.
    float gap(float logit) const { return largest - logit; }
};

// Tokens in falling order of probability, ties by id, as a set of which only as much is ordered as is asked for.
// Not synchronized; keeps its memory from row to row.
class Candidates {
  public:
    struct Candidate {
        std::uint64_t order;  // the gap's bits above the id: the smaller, the likelier
        double weight;        // relative to the likeliest token's

        std::int64_t id() const { return static_cast<std::int64_t>(order & 0xFFFFFFFF); }
    };

    // Takes the tokens at most `gap` below the largest.
    void gather(const BlockedRow& row, float gap, const KernelTable& kernels, double inverse_temperature);
    // Takes at least the `count` likeliest tokens, or all.
    void gather_likeliest(const BlockedRow& row, std::int64_t count, const KernelTable& kernels,
                          double inverse_temperature);

    std::size_t size() const { return items_.size(); }
    double total_weight() const;

    // Leaves the `count` likeliest.
    void keep(std::int64_t count);
    // Leaves the fewest likeliest that together weigh at least `weight`, or all.
    void keep_weight(double weight);
    // Leaves those that weigh at least `weight` each.
    void keep_each(double weight);

    // The first token, in falling order, at which the summed weights exceed `weight`. At least one candidate weighs.
    std::int64_t beyond(double weight);
    // All of them in falling order.
    const std::vector<Candidate>& sorted();

  private:
    // The index at which `reached(sum of the weights up to and with it)` first holds; size() when it never does.
    // Everything before the index is likelier than everything after it.
    template <typename Reached>
    std::size_t find(const Reached& reached);

    std::vector<Candidate> items_;
    std::vector<float> logits_, heads_;
    std::vector<double> weights_;
};

}  // namespace windlass
