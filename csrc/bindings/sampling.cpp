#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings/bindings.h"
#include "executor/executor.h"
#include "runtime/faults.h"
#include "sampling/noise.h"
#include "sampling/sampler.h"
#include "sampling/sequence.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

using LogitArray = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Top = std::vector<std::pair<std::int64_t, double>>;

// Sequence, position, number of logprobs to report (below 0 for none), mask.
using Row = std::tuple<const SequenceSampler*, std::uint64_t, int, std::optional<Mask>>;

// Rows are drawn by one sampler per thread.
class RowSampler {
  public:
    RowSampler(std::int64_t active_size, const std::string& kernels) { samplers_.emplace_back(active_size, kernels); }

    const Sampler& first() const { return samplers_.front(); }

    std::vector<SamplingResult> sample(const std::vector<SamplingJob>& jobs, Executor* executor) {
        std::vector<SamplingResult> results(jobs.size());
        const auto sample = [&](int thread, std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::size_t row = static_cast<std::size_t>(i);
                results[row] = samplers_[static_cast<std::size_t>(thread)].sample(jobs[row]);
            }
        };
        const std::int64_t count = static_cast<std::int64_t>(jobs.size());
        if (executor == nullptr || count < 2) {
            sample(0, 0, count);
        } else {
            while (static_cast<int>(samplers_.size()) < executor->num_threads()) {
                samplers_.emplace_back(first().active_size(), first().kernels());
            }
            executor->parallel_for(count, 1, sample);
        }
        return results;
    }

  private:
    std::vector<Sampler> samplers_;
};

std::vector<SamplingJob> jobs_of(const Sampler& sampler, const LogitArray& logits, const std::vector<Row>& rows) {
    if (logits.shape(0) != rows.size() || static_cast<std::int64_t>(logits.shape(1)) < sampler.active_size()) {
        throw std::invalid_argument("the logits must be [rows, vocabulary], with at least the active tokens");
    }
    std::vector<SamplingJob> jobs;
    for (const auto& [sequence, position, num_logprobs, mask] : rows) {
        if (sequence == nullptr) throw std::invalid_argument("a row has no sequence");
        if (mask && static_cast<std::int64_t>(mask->shape(0)) < (sampler.active_size() + 31) / 32) {
            throw std::invalid_argument("a mask must have a bit for each active token");
        }
        const std::span<const float> row(logits.data() + jobs.size() * logits.shape(1), logits.shape(1));
        jobs.push_back({row, sequence, position, mask ? mask->data() : nullptr, num_logprobs});
    }
    return jobs;
}

nb::list sample_rows(RowSampler& self, const LogitArray& logits, const std::vector<Row>& rows, Executor* executor) {
    const std::vector<SamplingJob> jobs = jobs_of(self.first(), logits, rows);
    std::vector<SamplingResult> results;
    {
        const FaultScope fallible;
        const nb::gil_scoped_release released;
        results = self.sample(jobs, executor);
    }
    nb::list drawn;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        const SamplingResult& result = results[i];
        const std::string position = std::to_string(jobs[i].position);
        if (result.status == SamplingResult::Status::kNotFinite) {
            const std::string what = "the model's logits at position " + position + " are not finite";
            PyErr_SetString(PyExc_FloatingPointError, what.c_str());
            throw nb::python_error();
        }
        if (result.status == SamplingResult::Status::kNothingAllowed) {
            throw std::invalid_argument("the mask at position " + position + " allows no token");
        }
        Top top;
        for (const TokenLogprob& one : result.top) top.emplace_back(one.id, one.logprob);
        drawn.append(nb::make_tuple(result.id, result.logprob, top));
    }
    return drawn;
}

void make_sequence(SequenceSampler* self, double temperature, double top_p, std::int64_t top_k, double min_p,
                   double presence_penalty, double frequency_penalty, double repetition_penalty,
                   const std::vector<std::pair<std::int64_t, double>>& logit_bias, std::uint64_t seed,
                   std::uint64_t choice) {
    SamplingParameters parameters;
    parameters.temperature = temperature;
    parameters.top_p = top_p;
    parameters.top_k = top_k;
    parameters.min_p = min_p;
    parameters.presence_penalty = static_cast<float>(presence_penalty);
    parameters.frequency_penalty = static_cast<float>(frequency_penalty);
    parameters.repetition_penalty = static_cast<float>(repetition_penalty);
    for (const auto& [id, bias] : logit_bias) parameters.logit_bias.emplace_back(id, static_cast<float>(bias));
    parameters.seed = seed;
    parameters.choice = choice;
    const FaultScope fallible;
    new (self) SequenceSampler(std::move(parameters));
}

}  // namespace

void bind_sampling(nb::module_& module) {
    module.def("uniform", &uniform, "seed"_a, "choice"_a, "position"_a);
    nb::class_<SequenceSampler>(module, "SequenceSampler")
        .def("__init__", &make_sequence, nb::kw_only(), "temperature"_a, "top_p"_a, "top_k"_a, "min_p"_a,
             "presence_penalty"_a, "frequency_penalty"_a, "repetition_penalty"_a, "logit_bias"_a, "seed"_a, "choice"_a)
        .def("note_prompt",
             [](SequenceSampler& self, const std::vector<std::int64_t>& ids) {
                 const FaultScope fallible;
                 self.note_prompt(ids);
             })
        .def("note_generated", [](SequenceSampler& self, const std::vector<std::int64_t>& ids) {
            const FaultScope fallible;
            self.note_generated(ids);
        });
    nb::class_<RowSampler>(module, "RowSampler")
        .def(nb::init<std::int64_t, const std::string&>(), nb::kw_only(), "active_vocab_size"_a, "kernels"_a)
        .def("sample_rows", &sample_rows, "logits"_a.noconvert(), "rows"_a, "executor"_a.none());
}

}  // namespace windlass
