// Packed weights as a file that is mapped instead of read.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "executor/program.h"
#include "executor/weight.h"
#include "runtime/memory.h"

namespace windlass {

// What a file was made from; its maker's business.
using PackIdentity = std::array<std::uint8_t, 32>;

struct MappedPack {
    Mapping memory;
    std::vector<Weight> weights;  // borrow from `memory`, in the order of the program
};

// A header of whole pages with the layouts of all weights, then the weights in the order of the program, each at the
// beginning of a page. The header is written last, so that a file without the end of it is nothing.
class PackFile {
  public:
    // The file that these weights, all of them ready, give. Borrows them.
    explicit PackFile(const std::vector<Weight>& weights);

    // How many pieces the file is written in, each the size of a huge page and at a multiple of it: where the file
    // system can, it keeps such a piece in one huge page, which is mapped at once.
    std::int64_t num_pieces() const;
    // Writes one piece, without what the header has of it. Throws std::system_error, std::bad_alloc.
    void write(int descriptor, std::int64_t piece) const;
    // To be called when all pieces have reached the disk. Throws std::system_error, std::bad_alloc.
    void write_header(int descriptor, const PackIdentity& identity) const;

    // Maps a file that has the weights of the program and this identity. Nothing when it has not, or is not whole.
    // Everything but the numbers themselves is checked before it is used. Throws std::bad_alloc.
    static std::optional<MappedPack> map(int descriptor, const std::vector<Program::WeightShape>& shapes,
                                         const PackIdentity& identity);

  private:
    const std::vector<Weight>& weights_;
    std::vector<WeightLayout> layouts_;
    std::vector<std::int64_t> offsets_;
};

}  // namespace windlass
