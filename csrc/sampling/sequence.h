// What one sequence wants of its draws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace windlass {

// The fields mean what windlass.native.sampling.SequenceSampler says.
struct SamplingParameters {
    double temperature = 1.0;
    double top_p = 1.0;
    std::int64_t top_k = 0;
    double min_p = 0.0;
    float presence_penalty = 0.0F;
    float frequency_penalty = 0.0F;
    float repetition_penalty = 1.0F;
    std::vector<std::pair<std::int64_t, float>> logit_bias;
    std::uint64_t seed = 0;
    std::uint64_t choice = 0;

    bool penalizes() const { return presence_penalty != 0 || frequency_penalty != 0 || repetition_penalty != 1; }
    bool greedy() const { return temperature == 0 || top_k == 1; }
    bool restricts() const { return top_p < 1 || top_k > 0 || min_p > 0; }
};

// The parameters of one sequence, and how often each of its tokens stands in it: counted once, as the sequence grows.
// Not synchronized.
class SequenceSampler {
  public:
    // Throws std::invalid_argument for a parameter out of range.
    explicit SequenceSampler(SamplingParameters parameters);

    const SamplingParameters& parameters() const { return parameters_; }

    // Notes tokens of the prompt, or generated ones. Ids below 0 are ignored.
    void note_prompt(std::span<const std::int64_t> token_ids);
    void note_generated(std::span<const std::int64_t> token_ids);

    // Adds the bias to the row [size] and applies the penalties.
    void shape(float* row, std::int64_t size) const;
    bool shapes() const { return !parameters_.logit_bias.empty() || !tokens_.empty(); }

  private:
    struct Token {
        std::int64_t id;
        std::int64_t generated;  // how often it was generated
    };
    Token& token(std::int64_t id);

    SamplingParameters parameters_;
    std::vector<Token> tokens_;  // in the order of their first appearance; stays empty when nothing is penalized
    std::unordered_map<std::int64_t, std::size_t> places_;
};

}  // namespace windlass
