// One forward step.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "executor/executor.h"
#include "runtime/faults.h"

namespace windlass {

// Multiplications in a piece of work: about a microsecond.
inline constexpr std::int64_t kPieceCost = 25'000;
// An operation with fewer multiplications is done by the caller alone: waking and waiting would cost more.
inline constexpr std::int64_t kSharedCost = 50'000;
// Quantizing a value costs about this many multiplications.
inline constexpr std::int64_t kQuantizeCost = 4;
// Panels per piece of a product: what the kernels unpack together.
inline constexpr std::int64_t kPiecePanels = 2;
// Long stretches of a weight per thread.
inline constexpr std::int64_t kStretches = 2;
// What a thread may fetch before it is needed: less than the caches of a core hold.
inline constexpr std::int64_t kFetchedAhead = 64 << 10;
// Up to so many tokens a product waits for the weights.
inline constexpr std::int64_t kFewTokens = 16;
// An exponential costs about this many multiplications.
inline constexpr std::int64_t kExponentialCost = 16;

inline std::int64_t num_panels(const PackedMatrix& matrix) { return (matrix.rows + kPanelRows - 1) / kPanelRows; }

// Blocks of nearly equal size, of whole tiles, that `rows` rows are cut into: the rows of one.
inline std::int64_t block_rows(std::int64_t rows, std::int64_t tile) {
    const std::int64_t tiles = (rows + tile - 1) / tile, most = kLinearTokens / tile;
    const std::int64_t blocks = (tiles + most - 1) / most;
    return std::min(rows, (tiles + blocks - 1) / blocks * tile);
}

// The operations of a program applied to one checked batch. Lives for the call of Executor::run that makes it, on that
// call's thread; the work of each operation is shared with the executor's threads. Allocates nothing.
class Step {
  public:
    Step(Executor& executor, const BatchView& batch, float* result);

    // False when the executor's cancel flag was seen.
    bool run();

  private:
    void apply(const Embed& op);
    void apply(const EmbedPosition& op);
    void apply(const RmsNorm& op);
    void apply(const LayerNorm& op);
    void apply(const HeadNorm& op);
    void apply(const Linear& op);
    void apply(const HeadLinear& op);
    void apply(const JoinHeads& op);
    void apply(const Rope& op);
    void apply(const WriteKV& op);
    void apply(const Attention& op);
    void apply(const Activation& op);
    void apply(const GatedActivation& op);
    void apply(const Route& op);
    void apply(const Experts& op);
    void apply(const Add& op);
    void apply(const AddBias& op);
    void apply(const Scale& op);
    void apply(const SigmoidGate& op);
    void apply(const Logits& op);
    void apply(const HiddenStates& op);

    void make_query_tiles();
    // Calls row(t, to) for each token: `to` is its row of `out`, or, when a product with codes is all that reads `out`,
    // a row that is quantized at once instead.
    template <typename Row>
    void for_rows(const View& out, std::int64_t cost, const Row& row);
    // Calls row(t, x) for each token: `x` is its row of the value.
    template <typename Row>
    void change_rows(const View& x, const Row& row);
    // Calls body(thread, job, t) for each of `rows` tokens, to be quantized for products with `weights` into the
    // executor's tiles.
    template <typename Body>
    void for_tiles(const PackedMatrix& weights, std::int64_t rows, std::int64_t cost, const Body& body);
    void quantize(const PackedMatrix& weights, const float* x, std::int64_t x_stride, std::int64_t rows);
    void linear(const PackedMatrix& matrix, const float* bias, const float* x, std::int64_t x_stride, std::int64_t rows,
                float* y, std::int64_t y_stride);

    // Products with several matrices of one weight, for the groups of rows of the executor.
    struct RowsLie {
        const float* x;  // of a group's first row; for float formats
        std::int64_t x_stride;
        float* y;
        std::int64_t y_stride;
    };
    template <typename Row>
    void fill_tiles(const PackedMatrix& weights, bool shared, std::int64_t cost, const Row& row);
    template <typename Lies>
    void products(const PackedMatrix& weights, const float* bias, std::int64_t matrix_rows, const Lies& lies);
    void run_experts(const Experts& op, std::int64_t first, std::int64_t tokens);
    void sum_experts(const Experts& op, std::int64_t first, std::int64_t tokens);
    // The rows that the batch asks for.
    void gather(const View& x, float* to, std::int64_t to_stride) const;

    // A unit of attention is a query tile, a KV head, and up to kUnitHeads of the query heads that read it.
    std::int64_t attention_units(const Attention& op) const;
    // A unit's work over all pages that it sees.
    AttentionJob attention_job(const Attention& op, std::int64_t unit, int thread) const;
    void attend_segment(AttentionJob job, std::int64_t segment, float* states) const;
    void finish_attention(const Attention& op, const AttentionJob& job, const float* states);
    // For few units of one token each: their segments are pieces of work of their own.
    void split_attention(const Attention& op, std::int64_t units, std::int64_t cost);

    // Sorts the tokens of sequences with adapters by their adapter.
    void group_adapters();
    // True when an adapter of the batch adds to the product with `weight`, which needs its input as floats.
    bool is_adapted(int weight) const;
    // Adds to the product what the adapters do.
    void adapt(const Linear& op);
    void add_update(const Linear& op, const AdapterUpdate& update, const Executor::AdapterGroup& group);
    // Leaves A x, times the scales of the pieces, in the rows of `adapter_hidden`.
    void multiply_a(const AdapterUpdate& update, const float* x, std::int64_t x_stride, std::int64_t rows);
    // Of a piece of an update: the panels of B from `panel` on, for `count` of the tokens, from row `row` of A x on.
    void add_panels(const Linear& op, const AdapterUpdate& update, const AdapterUpdate::Piece& piece, std::int64_t row,
                    int count, const std::int32_t* tokens, std::int64_t panel, int thread);

    // Calls body(thread, begin, end) for pieces of 0 .. count, about `cost` multiplications each; pieces after a cancel
    // do nothing.
    template <typename Body>
    void share(std::int64_t count, std::int64_t cost, const Body& body);

    // With few rows long stretches of the weights come first, which memory serves best, then short ones, to end
    // together. Not when short ones are so short that several are handed out at a time: then this is 0.
    std::int64_t long_stretch(std::int64_t panels, std::int64_t rows, std::int64_t columns) const {
        if (rows > kFewTokens || 2 * piece_cost(rows, columns) <= kPieceCost) return 0;
        return panels * 3 / 4 / (kStretches * resources_.pool->size());
    }
    static std::int64_t piece_cost(std::int64_t rows, std::int64_t columns) {
        return rows * kPanelRows * columns * kPiecePanels;
    }
    // Has the threads fetch what they will read first of the product after this operation.
    void fetch_next_product(std::int64_t rows);

    // Calls body(thread, panel, end) for pieces of 0 .. panels, each to be multiplied with `rows` rows of activations.
    template <typename Body>
    void share_panels(std::int64_t panels, std::int64_t rows, std::int64_t columns, const Body& body);

    // True from the moment at which any thread has seen the cancel flag: it may have left work undone, even when the
    // flag is cleared at once.
    bool cancelled() const {
        if (executor_.cancel_.load(std::memory_order_relaxed)) cancelled_.store(true, std::memory_order_relaxed);
        return cancelled_.load(std::memory_order_relaxed);
    }
    float* at(const View& view, std::int64_t row) const;
    std::int64_t stride(const View& view) const;
    float* scratch(int thread) const;
    const Weight& weight(int index) const { return resources_.weights[static_cast<std::size_t>(index)]; }
    // Null when there is none.
    const float* vector(int index) const { return index == kNoWeight ? nullptr : weight(index).vector(); }
    const PackedMatrix& matrix(int index) const { return weight(index).matrix(); }

    Executor& executor_;
    Executor::Resources& resources_;
    const KernelTable& kernels_;
    const BatchView& batch_;
    float* const result_;
    const std::int64_t tokens_;
    mutable std::atomic<bool> cancelled_{false};
    std::size_t op_ = 0;                           // the operation in progress
    const PackedMatrix* quantized_for_ = nullptr;  // the weights that the tiles were quantized for already
    std::int64_t longest_ = 0;                     // of the batch's contexts, in tokens
    std::int64_t attention_pages_ = 0;             // pages read per KV head, summed over the batch's tokens
};

template <typename Body>
void Step::share(std::int64_t count, std::int64_t cost, const Body& body) {
    const std::int64_t piece = std::max<std::int64_t>(1, kPieceCost / std::max<std::int64_t>(1, cost));
    const std::int64_t grain = count * cost < kSharedCost ? count : piece;
    resources_.pool->parallel_for(count, grain, [&](int thread, std::int64_t begin, std::int64_t end) {
        if (cancelled()) return;
        fault_point(Fault::kPiece);
        body(thread, begin, end);
        executor_.progress_.fetch_add(1, std::memory_order_relaxed);
    });
}

template <typename Body>
void Step::share_panels(std::int64_t panels, std::int64_t rows, std::int64_t columns, const Body& body) {
    const std::int64_t stretch = long_stretch(panels, rows, columns);
    const std::int64_t stretches = stretch > 0 ? kStretches * resources_.pool->size() : 0;
    const std::int64_t pieces = (panels - stretches * stretch + kPiecePanels - 1) / kPiecePanels;
    share(stretches + pieces, piece_cost(rows, columns), [&](int thread, std::int64_t begin, std::int64_t end) {
        const auto first_panel = [&](std::int64_t i) {
            return i <= stretches ? i * stretch : stretches * stretch + (i - stretches) * kPiecePanels;
        };
        body(thread, first_panel(begin), std::min(first_panel(end), panels));
    });
}

template <typename Body>
void Step::for_tiles(const PackedMatrix& weights, std::int64_t rows, std::int64_t cost, const Body& body) {
    const std::int64_t tokens = kernels_.tile_tokens(weights);
    const std::size_t tile_bytes = kernels_.tile_bytes(weights, static_cast<int>(tokens));
    share((rows - 1) / tokens + 1, std::min(rows, tokens) * cost,
          [&](int thread, std::int64_t begin, std::int64_t end) {
              for (std::int64_t tile = begin; tile < end; ++tile) {
                  QuantizeJob job = {};
                  job.matrix = &weights;
                  job.tile = resources_.tiles.data() + static_cast<std::size_t>(tile) * tile_bytes;
                  job.tokens = static_cast<int>(std::min(tokens, rows - tile * tokens));
                  for (; job.token < job.tokens; ++job.token) body(thread, job, tile * tokens + job.token);
              }
          });
}

}  // namespace windlass
