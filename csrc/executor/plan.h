// Where the values of a program live.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "executor/program.h"

namespace windlass {

// Tokens whose heads, or experts, are multiplied at once: what they need memory for.
inline constexpr std::int64_t kHeadTokens = 512;
inline constexpr std::int64_t kExpertTokens = 1024;

// The buffers of a program in one arena of floats: buffers that are not needed at the same time share memory.
// Immutable; refers to nothing.
struct Plan {
    struct Buffer {
        std::size_t offset = 0;   // in floats, of row 0
        std::int64_t stride = 0;  // in floats, from row to row
    };
    std::vector<Buffer> buffers;
    std::int64_t output_width = 0;  // columns of the step's result
    // Of a sequence: those that tables of positions have.
    std::int64_t most_positions = std::numeric_limits<std::int64_t>::max();
    Buffer logit_input;                   // the rows whose logits are wanted, gathered
    std::size_t arena_floats = 0;         // for all buffers, `max_tokens` rows each
    int most_heads_per_kv_head = 1;       // of all attention operations
    bool whole_sequences = false;         // a token may attend to later ones, which are to be in the batch
    std::vector<std::int64_t> rope_half;  // per rotary table: columns of its cosines
    std::int64_t row_floats = 0;          // that an operation on a row needs to work with
    // Products with many matrices stacked in one weight.
    std::int64_t most_groups = 0;     // matrices
    std::int64_t most_rows = 0;       // that meet a matrix, counted once for each
    std::int64_t expert_rows = 0;     // most rows of an operation with experts
    std::int64_t expert_inner = 0;    // floats from row to row of what lies between their two products
    std::int64_t expert_outputs = 0;  // likewise, of their results
    // Per weight: matrices that are multiplied at once, and rows, counted once for each.
    struct Activations {
        std::int64_t groups = 1;
        std::int64_t rows = 0;
    };
    std::vector<Activations> activations;
    // Per operation: what it writes is read by the next one, a Linear, and by no other.
    std::vector<bool> feeds_product;
    // Per operation: the weight of the first Linear or Logits after it, perhaps of the next step.
    std::vector<int> next_weight;
};

// Checks that the program cannot make the executor read or write out of bounds, and lays out its buffers.
// Throws std::invalid_argument for a program that breaks a rule.
Plan make_plan(const Program& program, std::int64_t max_tokens);

}  // namespace windlass
