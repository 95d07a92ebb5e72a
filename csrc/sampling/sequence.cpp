#include "sampling/sequence.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace windlass {
namespace {

void check(const char* name, bool right, const char* accepted) {
    if (!right) throw std::invalid_argument(std::string(name) + " must be " + accepted);
}

}  // namespace

SequenceSampler::SequenceSampler(SamplingParameters parameters) : parameters_(std::move(parameters)) {
    const SamplingParameters& p = parameters_;
    check("temperature", p.temperature >= 0 && std::isfinite(p.temperature), "a finite number, 0 or above");
    check("top_p", p.top_p >= 0 && p.top_p <= 1, "0 to 1");
    check("top_k", p.top_k >= 0, "0 or above");
    check("min_p", p.min_p >= 0 && p.min_p <= 1, "0 to 1");
    check("presence_penalty", std::isfinite(p.presence_penalty), "finite");
    check("frequency_penalty", std::isfinite(p.frequency_penalty), "finite");
    check("repetition_penalty", p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty), "finite and above 0");
    for (const auto& [id, bias] : p.logit_bias) check("logit_bias", id >= 0 && !std::isnan(bias), "ids and numbers");
}

SequenceSampler::Token& SequenceSampler::token(std::int64_t id) {
    const auto place = places_.find(id);
    if (place != places_.end()) return tokens_[place->second];
    tokens_.push_back({id, 0});
    try {
        places_.emplace(id, tokens_.size() - 1);
    } catch (...) {
        tokens_.pop_back();
        throw;
    }
    return tokens_.back();
}

void SequenceSampler::note_prompt(std::span<const std::int64_t> token_ids) {
    if (parameters_.repetition_penalty == 1) return;
    for (const std::int64_t id : token_ids) {
        if (id >= 0) token(id);
    }
}

void SequenceSampler::note_generated(std::span<const std::int64_t> token_ids) {
    if (!parameters_.penalizes()) return;
    for (const std::int64_t id : token_ids) {
        if (id >= 0) ++token(id).generated;
    }
}

void SequenceSampler::shape(float* row, std::int64_t size) const {
    for (const auto& [id, bias] : parameters_.logit_bias) {
        if (id < size) row[id] += bias;
    }
    const float repetition = parameters_.repetition_penalty;
    for (const Token& token : tokens_) {
        if (token.id >= size) continue;
        float& value = row[token.id];
        if (repetition != 1) value = value > 0 ? value / repetition : value * repetition;
        if (token.generated > 0) {
            value -= parameters_.presence_penalty + parameters_.frequency_penalty * static_cast<float>(token.generated);
        }
    }
}

}  // namespace windlass
