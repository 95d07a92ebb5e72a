// Where the values of a program live.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "executor/program.h"

namespace windlass {

// The buffers of a program in one arena of floats: buffers that are not needed at the same time share memory.
// Immutable; refers to nothing.
struct Plan {
    struct Buffer {
        std::size_t offset = 0;   // in floats, of row 0
        std::int64_t stride = 0;  // in floats, from row to row
    };
    std::vector<Buffer> buffers;
    std::int64_t output_width = 0;        // columns of the step's result
    std::int64_t most_positions = 0;      // of a sequence: those that tables of positions have
    Buffer logit_input;                   // the rows whose logits are wanted, gathered
    std::size_t arena_floats = 0;         // for all buffers, `max_tokens` rows each
    int most_heads_per_kv_head = 1;       // of all attention operations
    std::vector<std::int64_t> rope_half;  // per rotary table: columns of its cosines
    std::int64_t widest = 0;              // columns of the widest buffer
    // Per operation: what it writes is read by the next one, a Linear, and by no other.
    std::vector<bool> feeds_product;
};

// Checks that the program cannot make the executor read or write out of bounds, and lays out its buffers.
// Throws std::invalid_argument for a program that breaks a rule.
Plan make_plan(const Program& program, std::int64_t max_tokens);

}  // namespace windlass
