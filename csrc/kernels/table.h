// The border between the executor and the kernels: plain data and one table of function pointers per instruction set.
//
// This header is included by files compiled for different instruction sets, so it defines no functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace windlass {

// Output rows that are packed together; the lanes of the vectors run over them.
inline constexpr int kPanelRows = 32;
// Columns summed before the sum is scaled and added to the result: part of the numerical scheme.
inline constexpr int kBlockColumns = 64;
// Most tokens that one LinearJob may name.
inline constexpr int kLinearTokens = 64;
// Tokens in one page of the KV cache.
inline constexpr int kPageSize = 16;
// Most query tokens that one AttentionJob may name.
inline constexpr int kQueryTokens = 8;
// Rows of values in the KV cache are padded to this many elements.
inline constexpr int kHeadPadding = 16;
// Logits that share one maximum while a token is drawn.
inline constexpr int kSamplingBlock = 64;

enum class Format : std::int32_t { kF32, kF16, kBF16, kInt8, kInt4 };
enum class ScaleType : std::int32_t { kNone, kF16, kF32 };
enum class KVType : std::int32_t { kF32, kF16, kBF16 };

// A matrix [rows, columns] in panels of kPanelRows rows. A panel is a sequence of records, one per group of columns:
// for each column kPanelRows codes (int4: 16 bytes, row r in the low nibble of byte r, row r + 16 in its high nibble),
// then kPanelRows scales if there are scales, then kPanelRows zero points (bytes) if they differ within the matrix.
// The last record may have fewer columns. Rows that pad the last panel are zero.
struct PackedMatrix {
    const std::uint8_t* data;
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t group;         // columns of a full record
    std::int64_t column_bytes;  // bytes of the codes of one column of a panel
    std::int64_t record_bytes;  // bytes of a full record
    std::int64_t panel_bytes;
    const std::uint8_t* zeros;  // kInt4: kPanelRows equal zero points, or null when each record has its own
    Format format;
    ScaleType scale_type;
};

// y[t, r] = sum_c x[t, c] * w[r, c] + bias[r] for the rows of some panels and up to kLinearTokens tokens.
struct LinearJob {
    const PackedMatrix* matrix;
    std::int64_t panel_begin;
    std::int64_t panel_end;
    const float* x;
    std::int64_t x_stride;
    int tokens;
    float* y;
    std::int64_t y_stride;
    const float* bias;  // [rows] or null
    float* scratch;     // KernelTable::linear_scratch floats, aligned to 64 bytes
};

// Consecutive tokens of one sequence, the query heads of one KV head, over a range of the sequence's pages.
// The call with `first` set starts, the one with `last` set finishes and writes `out`; scratch is kept between them.
struct AttentionJob {
    const float* q;  // the first query head of the first token
    std::int64_t q_stride;
    float* out;
    std::int64_t out_stride;
    int tokens;
    std::int64_t position;  // of the first token
    int heads;              // query heads that read this KV head
    int head_dim;
    float scale;
    std::int64_t window;        // positions seen, or 0 for all
    const std::uint8_t* cache;  // page 0 of this layer and KV head
    std::int64_t page_bytes;
    const std::int32_t* page_ids;
    std::int64_t page_begin;
    std::int64_t page_end;
    bool first;
    bool last;
    KVType kv_type;
    float* scratch;  // KernelTable::attention_scratch(heads, head_dim) floats, aligned to 64 bytes
};

// One token's keys and values of one KV head, to be stored in slot `slot` of the page part `block`.
struct StoreKVJob {
    const float* k;
    const float* v;
    std::uint8_t* block;
    int slot;
    int head_dim;
    KVType kv_type;
};

// Every result depends only on the row it belongs to: not on the number of tokens, their grouping into jobs, or
// threads.
struct KernelTable {
    const char* name;
    std::size_t linear_scratch;
    std::size_t (*attention_scratch)(int heads, int head_dim);
    void (*linear)(const LinearJob& job);
    void (*embed)(const PackedMatrix& table, std::int64_t row, float* out);
    void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t width, float* out);
    void (*rope)(float* x, const float* cos, const float* sin, std::int64_t heads, std::int64_t head_dim,
                 std::int64_t half);
    void (*store_kv)(const StoreKVJob& job);
    void (*attention)(const AttentionJob& job);
    void (*silu_gate)(const float* x, std::int64_t width, float* out);
    void (*add)(float* x, const float* y, std::int64_t width);
    // The largest of each kSamplingBlock values, the last block perhaps shorter. False when any value is a NaN.
    bool (*block_maxima)(const float* x, std::int64_t count, float* maxima);
    // out[i] = e^((x[i] - largest) * inverse_temperature), where no x[i] is above `largest`; returns their sum.
    double (*likelihoods)(const float* x, std::int64_t count, float largest, double inverse_temperature, double* out);
};

}  // namespace windlass
