// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/table.h"
#include "sampling/candidates.h"
#include "sampling/sequence.h"

namespace windlass {

// One draw. Borrows everything it names.
struct SamplingJob {
    std::span<const float> logits;  // of the whole vocabulary, at least Sampler::active_size()
    const SequenceSampler* sequence = nullptr;
    std::uint64_t position = 0;          // tokens of the sequence so far
    const std::int32_t* mask = nullptr;  // bit j % 32 of word j / 32: token j is allowed; or null for all
    int num_logprobs = -1;               // likeliest tokens to report; below 0 no logprobs at all
};

struct TokenLogprob {
    std::int64_t id;
    double logprob;
};

struct SamplingResult {
    enum class Status { kDrawn, kNotFinite, kNothingAllowed };
    Status status = Status::kDrawn;
    std::int64_t id = 0;
    double logprob = 0;             // of the token, by the logits as the model gave them
    std::vector<TokenLogprob> top;  // falling, ties by id
};

// Draws tokens; ids from `active_size` on, the padding of the vocabulary, are never drawn. Holds memory to work in, so
// it serves one call at a time. Results depend on the job alone.
class Sampler {
  public:
    // Throws std::invalid_argument.
    Sampler(std::int64_t active_size, const std::string& kernels);

    std::int64_t active_size() const { return active_size_; }
    const char* kernels() const { return kernels_.name; }

    SamplingResult sample(const SamplingJob& job);

  private:
    // The row with its block maxima. False when it has a NaN or its largest is infinite.
    bool look(const float* logits, std::int64_t size, BlockedRow& row);
    void apply_mask(const std::int32_t* mask);
    std::int64_t draw(const BlockedRow& row, const SamplingParameters& parameters, double noise);
    std::int64_t draw_any(const BlockedRow& row, double inverse_temperature, double noise);
    void restrict(const BlockedRow& row, const SamplingParameters& parameters, double inverse_temperature);
    double total_weight(const BlockedRow& row, double inverse_temperature);
    void report(const SamplingJob& job, SamplingResult& result);

    const KernelTable& kernels_;
    const std::int64_t active_size_;
    std::vector<float> shaped_;  // a row after bias, penalties and mask
    std::vector<float> maxima_;
    std::vector<double> sums_;     // of the weights of each stretch
    std::vector<double> weights_;  // of one stretch
    Candidates candidates_;
};

}  // namespace windlass
