#include "executor/adapter.h"

#include <stdexcept>
#include <string>
#include <variant>

#include "runtime/faults.h"
#include "runtime/thread_pool.h"

namespace windlass {
namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument("adapter: " + reason); }

Weight packed(const SourceTensor& source) {
    fault_point(Fault::kPack);
    if (source.scale_type != ScaleType::kNone) refuse("its matrices are floats");
    ThreadPool alone(1);
    return Weight::pack_matrix(source, alone);
}

}  // namespace

Adapter::Adapter(const Program& program, std::uint64_t executor_id, std::int64_t row_floats)
    : executor_id_(executor_id),
      row_floats_(row_floats),
      shapes_(program.weights.size()),
      updates_(program.weights.size()) {
    for (const Op& op : program.ops) {
        const Linear* const linear = std::get_if<Linear>(&op);
        if (linear != nullptr) shapes_[static_cast<std::size_t>(linear->weight)] = {linear->out.width, linear->x.width};
    }
}

AdapterUpdate& Adapter::checked(std::int64_t weight) {
    const bool known = weight >= 0 && weight < static_cast<std::int64_t>(shapes_.size());
    if (!known || shapes_[static_cast<std::size_t>(weight)].first == 0) {
        refuse("there is no linear weight " + std::to_string(weight));
    }
    return updates_[static_cast<std::size_t>(weight)];
}

void Adapter::set_a(std::int64_t weight, const SourceTensor& source) {
    AdapterUpdate& update = checked(weight);
    if (update.a.ready()) refuse("weight " + std::to_string(weight) + " is updated twice");
    if (source.columns != shapes_[static_cast<std::size_t>(weight)].second) refuse("A does not fit its weight");
    const std::int64_t most_ranks = row_floats_ / AdapterUpdate::segments(source.columns) / 16 * 16;
    if (source.rows > most_ranks) {
        refuse("its ranks for one weight are " + std::to_string(source.rows) + "; at most " +
               std::to_string(most_ranks) + " are possible");
    }
    update.a = packed(source);
    bytes_ += update.a.bytes();
}

void Adapter::add_piece(std::int64_t weight, std::int64_t first_row, std::int64_t first_rank, float scale,
                        const SourceTensor& source) {
    AdapterUpdate& update = checked(weight);
    if (!update.a.ready()) refuse("B comes before A");
    const std::int64_t ranks = update.a.layout().rows;
    if (first_rank < 0 || source.columns > ranks || first_rank > ranks - source.columns) {
        refuse("B does not fit A");
    }
    const std::int64_t rows = shapes_[static_cast<std::size_t>(weight)].first;
    if (first_row < 0 || source.rows > rows || first_row > rows - source.rows) refuse("B does not fit its weight");
    AdapterUpdate::Piece piece;
    piece.first_row = first_row;
    piece.first_rank = first_rank;
    piece.scale = scale;
    piece.b = packed(source);
    bytes_ += piece.b.bytes();
    update.pieces.push_back(std::move(piece));
}

}  // namespace windlass
