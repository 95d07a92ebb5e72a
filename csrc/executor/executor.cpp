#include "executor/executor.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>

#include "executor/step.h"
#include "kernels/dispatch.h"
#include "runtime/faults.h"

namespace windlass {
namespace {

constexpr std::int64_t kMostTokens = 1 << 20;
constexpr int kMostThreads = 1024;

const ExecutorOptions& checked(const ExecutorOptions& options) {
    const auto within = [](const char* name, std::int64_t value, std::int64_t most) {
        if (value < 1 || value > most) {
            throw std::invalid_argument(std::string(name) + " must be 1 to " + std::to_string(most) + ", not " +
                                        std::to_string(value));
        }
    };
    within("num_pages", options.num_pages, INT32_MAX);
    within("max_tokens", options.max_tokens, kMostTokens);
    within("max_positions", options.max_positions, INT32_MAX);
    within("num_threads", options.num_threads, kMostThreads);
    return options;
}

// That tokens of a sequence can see one another: none came in an earlier batch.
void check_whole(const BatchView& batch) {
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
        if (batch.positions[batch.token_starts[s]] != 0) {
            throw std::invalid_argument("positions must begin at 0 in every sequence: attention is not causal");
        }
    }
}

std::size_t whole_lines(std::size_t floats) { return (floats + 15) / 16 * 16; }

std::uint64_t next_id() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
}

}  // namespace

Executor::Use::Use(Executor& executor) : executor_(executor) {
    if (executor.owner_ != getpid()) throw std::runtime_error("the executor belongs to the parent process");
    if (executor.in_use_.exchange(true)) throw std::runtime_error("the executor is in use by another thread");
    if (!executor.resources_) {
        executor.in_use_.store(false);
        throw std::runtime_error("the executor is closed");
    }
    if (!executor.resources_->pool->try_acquire()) {
        executor.in_use_.store(false);
        throw std::runtime_error("the threads are in use by another executor");
    }
}

Executor::Use::~Use() {
    executor_.resources_->pool->release();
    executor_.in_use_.store(false);
}

Executor::Executor(Program program, const ExecutorOptions& options, std::shared_ptr<ThreadPool> pool)
    : program_(std::move(program)),
      options_(checked(options)),
      kernels_(select_kernels(options.kernels)),
      plan_(make_plan(program_, options.max_tokens)),
      owner_(getpid()),
      id_(next_id()) {
    if (options.kv_type == KVType::kInt16 && program_.head_dim > kMostCodedHead) {
        throw std::invalid_argument("heads must have at most " + std::to_string(kMostCodedHead) +
                                    " columns for a KV cache of int16");
    }
    if (pool && pool->size() != options.num_threads) {
        throw std::invalid_argument("num_threads must be " + std::to_string(pool->size()) +
                                    ", as many as there are to share, not " + std::to_string(options.num_threads));
    }
    auto resources = std::make_unique<Resources>();
    resources->cache =
        KVCache({program_.num_layers, program_.num_kv_heads, program_.head_dim, options.kv_type}, options.num_pages);
    resources->arena = Mapping(plan_.arena_floats * sizeof(float));
    state_floats_ = kernels_.attention_state(program_.head_dim) *
                    static_cast<std::size_t>(std::min(plan_.most_heads_per_kv_head, kUnitHeads));
    scratch_floats_ =
        whole_lines(std::max({kernels_.linear_scratch, static_cast<std::size_t>(plan_.row_floats),
                              kernels_.attention_scratch(program_.head_dim) + 2 * kQueryTokens * state_floats_}));
    resources->scratch = Mapping(scratch_floats_ * sizeof(float) * static_cast<std::size_t>(options.num_threads));
    const std::int64_t segments = (options.max_positions - 1) / (kSegmentPages * kPageSize) + 1;
    resources->partial_states =
        Mapping(static_cast<std::size_t>(segments * most_split_units()) * state_floats_ * sizeof(float));
    const auto expert_memory = [&](std::int64_t stride) {
        return Mapping(static_cast<std::size_t>(plan_.expert_rows * stride) * sizeof(float));
    };
    resources->expert_inner = expert_memory(plan_.expert_inner);
    resources->expert_outputs = expert_memory(plan_.expert_outputs);
    resources->row_groups.reserve(plan_.most_groups, plan_.most_rows, kExpertTokens);
    resources->weights.resize(program_.weights.size());
    resources->ropes.resize(static_cast<std::size_t>(program_.num_ropes));
    resources->query_tiles.reserve(static_cast<std::size_t>(options.max_tokens));
    resources->slots.reserve(static_cast<std::size_t>(options.max_tokens));
    resources->adapter_tokens.reserve(static_cast<std::size_t>(options.max_tokens));
    resources->adapter_groups.reserve(static_cast<std::size_t>(options.max_tokens));
    // An odd number of cache lines, as the plan has it for its buffers.
    const std::int64_t widest = *std::max_element(program_.buffer_widths.begin(), program_.buffer_widths.end());
    adapter_row_floats_ = static_cast<std::int64_t>(whole_lines(static_cast<std::size_t>(widest)) | 16);
    const std::size_t adapter_bytes =
        static_cast<std::size_t>(options.max_tokens * adapter_row_floats_) * sizeof(float);
    resources->adapter_x = Mapping(adapter_bytes);
    resources->adapter_hidden = Mapping(adapter_bytes);
    resources->adapter_sums =
        Mapping(static_cast<std::size_t>(kAdapterSums) * sizeof(float) * static_cast<std::size_t>(options.num_threads));
    resources->pool = pool ? std::move(pool) : std::make_shared<ThreadPool>(options.num_threads);
    kv_cache_bytes_ = resources->cache.bytes();
    resources_ = std::move(resources);
}

Executor::~Executor() {
    // In a forked child the threads do not exist: forget them, and all that comes with them.
    if (owner_ != getpid()) static_cast<void>(resources_.release());
}

void Executor::close() {
    if (owner_ != getpid()) return;
    if (in_use_.exchange(true)) throw std::runtime_error("the executor is in use by another thread");
    resources_.reset();
    kv_cache_bytes_ = 0;
    weight_bytes_ = 0;
    in_use_.store(false);
}

void Executor::set_weight(std::int64_t index, const SourceTensor& source) {
    const Use use(*this);
    fault_point(Fault::kPack);
    if (index < 0 || index >= static_cast<std::int64_t>(program_.weights.size())) {
        throw std::invalid_argument("there is no weight " + std::to_string(index));
    }
    const Program::WeightShape& shape = program_.weights[static_cast<std::size_t>(index)];
    Weight& weight = resources_->weights[static_cast<std::size_t>(index)];
    if (weight.ready()) throw std::invalid_argument("weight " + shape.name + " is given twice");
    if (source.rows != shape.rows || source.columns != shape.columns) {
        throw std::invalid_argument("weight " + shape.name + " has the wrong shape");
    }
    if (shape.is_vector) {
        if (source.scale_type != ScaleType::kNone || source.format == Format::kFp8) {
            throw std::invalid_argument("weight " + shape.name + " is a vector and cannot be quantized");
        }
        weight = Weight::pack_vector(source);
    } else {
        Weight packed = Weight::pack_matrix(source, *resources_->pool);
        reserve_tiles(static_cast<std::size_t>(index), packed.matrix());
        weight = std::move(packed);
    }
    weight_bytes_ += weight.bytes();
}

bool Executor::map_weights(int descriptor, const PackIdentity& identity) {
    const Use use(*this);
    for (const Weight& weight : resources_->weights) {
        if (weight.ready()) throw std::invalid_argument("some weights are there already");
    }
    std::optional<MappedPack> pack = PackFile::map(descriptor, program_.weights, identity);
    if (!pack) return false;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < pack->weights.size(); ++i) {
        const Weight& weight = pack->weights[i];
        if (!weight.layout().is_vector) reserve_tiles(i, weight.matrix());
        bytes += weight.bytes();
    }
    auto prefault = std::make_unique<Prefault>(pack->memory.data(), pack->memory.size());
    resources_->pack = std::move(pack->memory);
    resources_->prefault = std::move(prefault);
    resources_->weights = std::move(pack->weights);
    weight_bytes_ += bytes;
    return true;
}

std::int64_t Executor::num_pieces() {
    const Use use(*this);
    check_weights();
    return PackFile(resources_->weights).num_pieces();
}

void Executor::write_piece(int descriptor, std::int64_t index) {
    const Use use(*this);
    check_weights();
    const PackFile file(resources_->weights);
    if (index < 0 || index >= file.num_pieces()) {
        throw std::invalid_argument("there is no piece " + std::to_string(index));
    }
    file.write(descriptor, index);
}

void Executor::write_header(int descriptor, const PackIdentity& identity) {
    const Use use(*this);
    check_weights();
    PackFile(resources_->weights).write_header(descriptor, identity);
}

void Executor::reserve_tiles(std::size_t index, const PackedMatrix& matrix) {
    if (matrix.scale_type == ScaleType::kNone) return;
    const int tokens = kernels_.tile_tokens(matrix);
    // Each group may end with a tile that is not full.
    const Plan::Activations& most = plan_.activations[index];
    const std::int64_t tiles = std::min(most.rows, most.rows / tokens + most.groups);
    const std::size_t bytes = kernels_.tile_bytes(matrix, tokens) * static_cast<std::size_t>(tiles);
    if (bytes > resources_->tiles.size()) resources_->tiles = Mapping(bytes);
}

void Executor::set_rope_frequencies(std::int64_t index, std::span<const float> frequencies) {
    const Use use(*this);
    const std::int64_t half = static_cast<std::int64_t>(frequencies.size());
    RopeTable table = new_rope_table(index, options_.max_positions, half);
    float* const cos = table.cos.floats();
    float* const sin = table.sin.floats();
    constexpr std::int64_t kGrain = 64;
    resources_->pool->parallel_for(options_.max_positions, kGrain, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t at = begin * half; at < end * half; ++at) {
            const double angle = static_cast<float>(at / half) * frequencies[static_cast<std::size_t>(at % half)];
            cos[at] = static_cast<float>(std::cos(angle));
            sin[at] = static_cast<float>(std::sin(angle));
        }
    });
    resources_->ropes[static_cast<std::size_t>(index)] = std::move(table);
}

void Executor::set_rope(std::int64_t index, const float* cos, const float* sin, std::int64_t positions,
                        std::int64_t half) {
    const Use use(*this);
    RopeTable table = new_rope_table(index, positions, half);
    const std::size_t bytes = static_cast<std::size_t>(positions * half) * sizeof(float);
    std::memcpy(table.cos.data(), cos, bytes);
    std::memcpy(table.sin.data(), sin, bytes);
    resources_->ropes[static_cast<std::size_t>(index)] = std::move(table);
}

Executor::RopeTable Executor::new_rope_table(std::int64_t index, std::int64_t positions, std::int64_t half) const {
    if (index < 0 || index >= program_.num_ropes) throw std::invalid_argument("there is no such rotary table");
    const std::int64_t wanted = plan_.rope_half[static_cast<std::size_t>(index)];
    if (positions != options_.max_positions || (wanted != 0 && half != wanted)) {
        throw std::invalid_argument("a rotary table must be [" + std::to_string(options_.max_positions) + ", " +
                                    std::to_string(wanted) + "]");
    }
    const std::size_t bytes = static_cast<std::size_t>(positions * half) * sizeof(float);
    return {Mapping(bytes), Mapping(bytes)};
}

void Executor::check_weights() const {
    for (std::size_t i = 0; i < program_.weights.size(); ++i) {
        if (!resources_->weights[i].ready()) {
            throw std::invalid_argument("weight " + program_.weights[i].name + " is missing");
        }
    }
}

void Executor::check_complete() const {
    check_weights();
    for (const RopeTable& table : resources_->ropes) {
        if (table.cos.data() == nullptr) throw std::invalid_argument("a rotary table is missing");
    }
}

std::shared_ptr<ThreadPool> Executor::pool() {
    const Use use(*this);
    return resources_->pool;
}

std::unique_ptr<Adapter> Executor::make_adapter() const {
    return std::make_unique<Adapter>(program_, id_, adapter_row_floats_);
}

bool Executor::run(const BatchView& batch, float* result) {
    const Use use(*this);
    if (!complete_) {
        check_complete();
        complete_ = true;
    }
    const std::int64_t max_positions = std::min(options_.max_positions, plan_.most_positions);
    check_batch(batch, {options_.max_tokens, max_positions, options_.num_pages, program_.vocab_size, id_},
                resources_->slots);
    if (plan_.whole_sequences) check_whole(batch);
    if (cancel_.exchange(false)) return false;
    if (Step(*this, batch, result).run()) return true;
    cancel_.store(false);
    return false;
}

}  // namespace windlass
