// Runs one program over one KV cache.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "executor/adapter.h"
#include "executor/batch.h"
#include "executor/kv_cache.h"
#include "executor/pack_file.h"
#include "executor/plan.h"
#include "executor/program.h"
#include "executor/row_groups.h"
#include "executor/weight.h"
#include "kernels/table.h"
#include "runtime/memory.h"
#include "runtime/prefault.h"
#include "runtime/thread_pool.h"

namespace windlass {

// What adapters add is summed for so many panels, and up to kLinearTokens tokens, at a time.
inline constexpr std::int64_t kAdapterPanels = 2;
inline constexpr std::int64_t kAdapterSums = kAdapterPanels * kPanelRows * kLinearTokens;
// Query heads of one KV head that attend together; with more they are shared out.
inline constexpr int kUnitHeads = 16;

struct ExecutorOptions {
    std::int64_t num_pages = 0;
    std::int64_t max_tokens = 0;
    std::int64_t max_positions = 0;
    int num_threads = 1;
    KVType kv_type = KVType::kF16;
    std::string kernels;  // empty for the best ones
};

// Owns weights, KV cache and buffers, all freed by close(), and, with the executors that share them, threads.
// cancel, clear_cancel and the getters may be called from any thread at any time; the other calls exclude one another
// and throw std::runtime_error when one is in progress, as all but close() do while another executor has the threads.
// In a forked child every such call throws, and close() and the destructor only forget: the threads are the parent's.
class Executor {
  public:
    // Starts threads, or shares `pool`, which has as many as the options say.
    // Throws std::invalid_argument, std::bad_alloc or std::system_error, with nothing left behind.
    Executor(Program program, const ExecutorOptions& options, std::shared_ptr<ThreadPool> pool = nullptr);
    ~Executor();
    Executor(const Executor&) = delete;
    Executor& operator=(const Executor&) = delete;

    // Packs one weight; its shape must be the program's. The source may be freed afterwards.
    void set_weight(std::int64_t index, const SourceTensor& source);
    // Maps all weights from a file that write_piece and write_header made; none was set before. False, and nothing has
    // changed, when the file is not whole or not of these weights. The descriptor may be closed afterwards.
    bool map_weights(int descriptor, const PackIdentity& identity);
    // Write the file, when all weights are set: each of its pieces, then, once they are on the disk, the header.
    // Throw std::system_error, std::bad_alloc.
    std::int64_t num_pieces();
    void write_piece(int descriptor, std::int64_t index);
    void write_header(int descriptor, const PackIdentity& identity);
    // Makes one rotary table: the cosines and sines of position * frequency, for max_positions positions. The angles
    // are rounded to float, as the products of floats.
    void set_rope_frequencies(std::int64_t index, std::span<const float> frequencies);
    // Copies one rotary table: cosines and sines, each [max_positions, half], contiguous.
    void set_rope(std::int64_t index, const float* cos, const float* sin, std::int64_t positions, std::int64_t half);

    // An adapter to be filled, by any thread, also while a call is in progress.
    std::unique_ptr<Adapter> make_adapter() const;

    // The threads, for another executor; they end with the last one that has them.
    std::shared_ptr<ThreadPool> pool();

    // One forward step: `result` [logit rows, output_width()], contiguous. False when it was cancelled.
    // Throws std::invalid_argument for a batch that breaks a rule; then nothing was written.
    bool run(const BatchView& batch, float* result);

    // Calls body(thread, begin, end) for pieces of 0 .. count on the executor's threads: for work that belongs to a
    // step but is not the program's.
    template <typename Body>
    void parallel_for(std::int64_t count, std::int64_t grain, const Body& body) {
        const Use use(*this);
        resources_->pool->parallel_for(count, grain, body);
    }

    void cancel() { cancel_.store(true); }
    void clear_cancel() { cancel_.store(false); }
    std::uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }

    void close();

    const Program& program() const { return program_; }
    std::int64_t output_width() const { return plan_.output_width; }
    int num_threads() const { return options_.num_threads; }
    const char* kernels() const { return kernels_.name; }
    std::size_t kv_cache_bytes() const { return kv_cache_bytes_.load(); }
    std::size_t weight_bytes() const { return weight_bytes_.load(); }

  private:
    friend class Step;

    struct RopeTable {
        Mapping cos, sin;
    };
    // One that is to be filled, if it is what the program wants.
    RopeTable new_rope_table(std::int64_t index, std::int64_t positions, std::int64_t half) const;
    // Consecutive tokens of one sequence that attend together.
    struct QueryTile {
        std::int32_t sequence;
        std::int32_t token;
        std::int32_t count;
    };
    // The tokens of all sequences of one adapter: `count` of Resources::adapter_tokens from `begin` on.
    struct AdapterGroup {
        const Adapter* adapter;
        std::int64_t begin;
        std::int64_t count;
    };
    // Everything that close() frees.
    struct Resources {
        KVCache cache;
        Mapping arena;
        Mapping scratch;
        Mapping partial_states;              // of attention whose segments are shared out
        Mapping tiles;                       // quantized activations of one operation
        Mapping expert_inner;                // between the two products of experts
        Mapping expert_outputs;              // their results, one row for each token of each
        Mapping pack;                        // the file that `weights` borrow from, if they do
        std::unique_ptr<Prefault> prefault;  // of `pack`
        std::vector<Weight> weights;
        std::vector<RopeTable> ropes;
        RowGroups row_groups;
        std::vector<QueryTile> query_tiles;  // has room for max_tokens
        std::vector<std::int64_t> slots;     // likewise
        // Likewise, for batches with adapters. Of these mappings memory is taken as far as they are used: inputs of
        // tokens of one adapter, their products with A, and per thread their products with a part of B.
        std::vector<std::int32_t> adapter_tokens;
        std::vector<AdapterGroup> adapter_groups;
        Mapping adapter_x;
        Mapping adapter_hidden;
        Mapping adapter_sums;
        std::shared_ptr<ThreadPool> pool;
    };
    // Holds the executor and its threads for one call.
    class Use {
      public:
        explicit Use(Executor& executor);
        ~Use();
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

      private:
        Executor& executor_;
    };

    // With fewer units of attention than this some threads would have nothing to do.
    std::int64_t most_split_units() const { return 2 * options_.num_threads - 1; }

    void check_weights() const;
    void check_complete() const;
    // Makes room for the activations of `matrix`, the weight of that number.
    void reserve_tiles(std::size_t index, const PackedMatrix& matrix);

    const Program program_;
    const ExecutorOptions options_;
    const KernelTable& kernels_;
    const Plan plan_;
    const pid_t owner_;
    const std::uint64_t id_;                // no other executor of the process has it
    std::size_t scratch_floats_ = 0;        // per thread
    std::int64_t adapter_row_floats_ = 0;   // from row to row of what adapters work on
    std::size_t state_floats_ = 0;          // of the attention of one token and the heads of a unit
    std::unique_ptr<Resources> resources_;  // null once closed
    bool complete_ = false;                 // all weights and tables are there
    std::atomic<bool> in_use_{false};
    std::atomic<bool> cancel_{false};
    std::atomic<std::uint64_t> progress_{0};
    std::atomic<std::size_t> kv_cache_bytes_{0};
    std::atomic<std::size_t> weight_bytes_{0};
};

}  // namespace windlass
