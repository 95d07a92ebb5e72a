// Low-rank adapters: what is added to the products of a program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "executor/program.h"
#include "executor/weight.h"

namespace windlass {

// Columns of A whose products are summed by themselves before these sums are added: part of the numerical scheme.
inline constexpr std::int64_t kAdapterColumns = 1024;

// What an adapter adds to the product with one weight: for each piece, to the columns from `first_row` on of the
// product, B times the ranks from `first_rank` on of A x, times `scale`.
struct AdapterUpdate {
    struct Piece {
        std::int64_t first_row = 0;
        std::int64_t first_rank = 0;
        float scale = 1;
        Weight b;  // [N, r]
    };
    Weight a;  // [ranks of all pieces, K]
    std::vector<Piece> pieces;

    static std::int64_t segments(std::int64_t columns) { return (columns + kAdapterColumns - 1) / kAdapterColumns; }
    // Floats from row to row of A x: whole cache lines.
    std::int64_t hidden_stride() const { return (a.layout().rows + 15) / 16 * 16; }
};

// The updates of an adapter, packed. Belongs to the executor whose id it has. Filled by one thread, which no other
// disturbs; immutable once it is in a batch.
class Adapter {
  public:
    // `row_floats`: what the executor has room for, per token, for the products with one matrix A.
    Adapter(const Program& program, std::uint64_t executor_id, std::int64_t row_floats);

    // The matrix A of all pieces for a weight, one below the other, and then each of the pieces, of which B is given.
    // Throw std::invalid_argument for what does not fit, and std::bad_alloc.
    void set_a(std::int64_t weight, const SourceTensor& source);
    void add_piece(std::int64_t weight, std::int64_t first_row, std::int64_t first_rank, float scale,
                   const SourceTensor& source);

    // Null when it adds nothing to the product with `weight`.
    const AdapterUpdate* update(int weight) const {
        const AdapterUpdate& found = updates_[static_cast<std::size_t>(weight)];
        return found.pieces.empty() ? nullptr : &found;
    }
    std::uint64_t executor_id() const { return executor_id_; }
    std::size_t bytes() const { return bytes_; }

  private:
    AdapterUpdate& checked(std::int64_t weight);

    const std::uint64_t executor_id_;
    const std::int64_t row_floats_;
    std::vector<std::pair<std::int64_t, std::int64_t>> shapes_;  // of each weight; [0, 0] where it can add nothing
    std::vector<AdapterUpdate> updates_;                         // of each weight
    std::size_t bytes_ = 0;
};

}  // namespace windlass
