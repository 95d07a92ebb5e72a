#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/dispatch.h"
#include "runtime/default_floats.h"
#include "sampling/noise.h"

namespace windlass {
namespace {

constexpr std::int64_t kMaskBits = 32;
// Logits whose weights are worked out together, and stay in the nearest cache.
constexpr std::int64_t kStretch = 512;
// Candidates looked at first when top_p alone says how many are needed, and by how much more each time.
constexpr std::int64_t kFirstCandidates = 64;
constexpr std::int64_t kMoreCandidates = 8;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double inverse(double temperature) { return std::min(1 / temperature, std::numeric_limits<double>::max()); }

// The gap of a token with this weight, or a little more.
float gap_of_weight(double weight, double temperature) {
    return static_cast<float>(std::min(-std::log(weight) * temperature * (1 + 1e-6), 3e38));
}

std::int64_t first_at(const BlockedRow& row, float logit) {
    const std::int64_t block = std::find(row.maxima, row.maxima + row.blocks(), logit) - row.maxima;
    return std::find(row.logits + block * kSamplingBlock, row.logits + row.size, logit) - row.logits;
}

}  // namespace

Sampler::Sampler(std::int64_t active_size, const std::string& kernels)
    : kernels_(select_kernels(kernels)), active_size_(active_size), weights_(kStretch) {
    if (active_size < 1 || active_size > INT32_MAX) {
        throw std::invalid_argument("active_vocab_size must be 1 or above, not " + std::to_string(active_size));
    }
}

SamplingResult Sampler::sample(const SamplingJob& job) {
    const DefaultFloats default_floats;
    SamplingResult result;
    const SamplingParameters& parameters = job.sequence->parameters();
    const float* logits = job.logits.data();
    if (job.sequence->shapes() || job.mask != nullptr) {
        shaped_.assign(logits, logits + active_size_);
        job.sequence->shape(shaped_.data(), active_size_);
        logits = shaped_.data();
    }
    BlockedRow row = {};
    bool finite = look(logits, active_size_, row);
    if (finite && job.mask != nullptr) {
        apply_mask(job.mask);
        if (!look(logits, active_size_, row)) {
            result.status = SamplingResult::Status::kNothingAllowed;
            return result;
        }
    }
    if (!finite) {
        result.status = SamplingResult::Status::kNotFinite;
        return result;
    }
    if (parameters.greedy()) {
        result.id = first_at(row, row.largest);
    } else {
        result.id = draw(row, parameters, uniform(parameters.seed, parameters.choice, job.position));
    }
    if (job.num_logprobs >= 0) report(job, result);
    return result;
}

bool Sampler::look(const float* logits, std::int64_t size, BlockedRow& row) {
    maxima_.resize(static_cast<std::size_t>((size + kSamplingBlock - 1) / kSamplingBlock));
    row = {logits, size, maxima_.data(), 0};
    if (!kernels_.block_maxima(logits, size, maxima_.data())) return false;
    row.largest = *std::max_element(row.maxima, row.maxima + row.blocks());
    return std::isfinite(row.largest);
}

void Sampler::apply_mask(const std::int32_t* mask) {
    for (std::int64_t begin = 0; begin < active_size_; begin += kMaskBits) {
        const std::uint32_t word = static_cast<std::uint32_t>(mask[begin / kMaskBits]);
        if (word == 0xFFFFFFFF) continue;
        const std::int64_t end = std::min(begin + kMaskBits, active_size_);
        for (std::int64_t i = begin; i < end; ++i) {
            if ((word >> (i - begin) & 1) == 0) shaped_[static_cast<std::size_t>(i)] = -kInfinity;
        }
    }
}

std::int64_t Sampler::draw(const BlockedRow& row, const SamplingParameters& parameters, double noise) {
    const double inverse_temperature = inverse(parameters.temperature);
    if (!parameters.restricts()) return draw_any(row, inverse_temperature, noise);
    restrict(row, parameters, inverse_temperature);
    return candidates_.beyond(noise * candidates_.total_weight());
}

// Inverts the distribution function of the whole row, in the order of the vocabulary.
std::int64_t Sampler::draw_any(const BlockedRow& row, double inverse_temperature, double noise) {
    const double target = noise * total_weight(row, inverse_temperature);
    double before = 0;
    std::int64_t last = 0;
    for (std::int64_t begin = 0; begin < row.size; begin += kStretch) {
        const double sum = sums_[static_cast<std::size_t>(begin / kStretch)];
        if (before + sum > target) {
            const std::int64_t count = std::min(kStretch, row.size - begin);
            kernels_.likelihoods(row.logits + begin, count, row.largest, inverse_temperature, weights_.data());
            // Here the sum is taken in another order: it may end a rounding short, and the next token is the one.
            double reached = before;
            for (std::int64_t i = 0; i < count; ++i) {
                const double weight = weights_[static_cast<std::size_t>(i)];
                if (weight == 0) continue;
                last = begin + i;
                reached += weight;
                if (reached > target) return last;
            }
        }
        before += sum;
    }
    return last;
}

double Sampler::total_weight(const BlockedRow& row, double inverse_temperature) {
    sums_.resize(static_cast<std::size_t>((row.size + kStretch - 1) / kStretch));
    double total = 0;
    for (std::int64_t begin = 0; begin < row.size; begin += kStretch) {
        const std::int64_t count = std::min(kStretch, row.size - begin);
        const double sum =
            kernels_.likelihoods(row.logits + begin, count, row.largest, inverse_temperature, weights_.data());
        sums_[static_cast<std::size_t>(begin / kStretch)] = sum;
        total += sum;
    }
    return total;
}

// Makes candidates_ the tokens that top_k, then top_p, then min_p leave.
void Sampler::restrict(const BlockedRow& row, const SamplingParameters& parameters, double inverse_temperature) {
    const bool limited = parameters.top_k > 0 && parameters.top_k < row.size;
    if (limited) {
        candidates_.gather_likeliest(row, parameters.top_k, kernels_, inverse_temperature);
        candidates_.keep(parameters.top_k);
        if (parameters.top_p < 1) candidates_.keep_weight(parameters.top_p * candidates_.total_weight());
    } else if (parameters.top_p < 1) {
        const double needed = parameters.top_p * total_weight(row, inverse_temperature);
        std::int64_t count = kFirstCandidates;
        do {
            candidates_.gather_likeliest(row, count, kernels_, inverse_temperature);
            count *= kMoreCandidates;
        } while (candidates_.total_weight() < needed && static_cast<std::int64_t>(candidates_.size()) < row.size);
        candidates_.keep_weight(needed);
    } else {
        const bool all = parameters.min_p == 0;
        const float gap = all ? kInfinity : gap_of_weight(parameters.min_p, parameters.temperature);
        candidates_.gather(row, gap, kernels_, inverse_temperature);
    }
    if (parameters.min_p > 0) candidates_.keep_each(parameters.min_p);
}

// The logprobs are the model's own, over the whole vocabulary: before bias, penalties, mask and temperature.
void Sampler::report(const SamplingJob& job, SamplingResult& result) {
    BlockedRow row = {};
    if (!look(job.logits.data(), static_cast<std::int64_t>(job.logits.size()), row)) {
        result.logprob = std::numeric_limits<double>::quiet_NaN();
        return;
    }
    const double base = std::log(total_weight(row, 1)) + static_cast<double>(row.largest);
    result.logprob = static_cast<double>(row.logits[result.id]) - base;
    if (job.num_logprobs == 0) return;
    candidates_.gather_likeliest(row, job.num_logprobs, kernels_, 1);
    candidates_.keep(job.num_logprobs);
    for (const Candidates::Candidate& one : candidates_.sorted()) {
        result.top.push_back({one.id(), static_cast<double>(row.logits[one.id()]) - base});
    }
}

}  // namespace windlass
