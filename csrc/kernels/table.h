// The border between the executor and the kernels: plain data and one table of function pointers per instruction set.
//
// This header is included by files compiled for different instruction sets, so it defines no functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace windlass {

// Output rows that are packed together; the lanes of the vectors run over them.
inline constexpr int kPanelRows = 32;
// Columns of a float matrix summed before the sum is added to the result: part of the numerical scheme.
inline constexpr int kBlockColumns = 64;
// Most tokens that one LinearJob may name.
inline constexpr int kLinearTokens = 64;
// Activations that meet a quantized matrix share a scale per block of columns, at most this many. Products of codes are
// summed as integers over runs of columns. Both are part of the numerical scheme.
inline constexpr int kActivationColumns = 128;
inline constexpr int kRunColumns = 32;
// Columns of a record of codes are padded to a multiple of this.
inline constexpr int kOctet = 8;
// The codes of four columns of all rows of a panel, a byte each.
inline constexpr std::int64_t kQuadBytes = kPanelRows * 4;
// Tokens in one page of the KV cache.
inline constexpr int kPageSize = 16;
// Pages of a sequence whose attention is one piece of work: part of the numerical scheme.
inline constexpr int kSegmentPages = 32;
// Most query tokens that one AttentionJob may name.
inline constexpr int kQueryTokens = 32;
// The largest head with KVType::kInt16: sums of products of codes must fit 32 bits.
inline constexpr int kMostCodedHead = 2048;
// Rows of values in the KV cache are padded to this many elements.
inline constexpr int kHeadPadding = 16;
// Logits that share one maximum while a token is drawn.
inline constexpr int kSamplingBlock = 64;

// kFp8: floats of 8 bits (e4m3, without infinities), with a scale for groups of columns of a row. kInt6 and kInt5 are
// only how matrices of kInt8 lie in memory whose codes are few enough.
enum class Format : std::int32_t { kF32, kF16, kBF16, kInt8, kInt4, kFp8, kInt6, kInt5 };
// kProduct: the product of an f16 that an activation block has and an int8 of the record.
enum class ScaleType : std::int32_t { kNone, kF16, kF32, kProduct };
enum class ActivationKind : std::int32_t { kSilu, kGelu, kGeluTanh, kRelu, kClampedSwiglu };
// kInt8 and kInt16: codes with a scale per token and head, of 8 and 14 bits.
enum class KVType : std::int32_t { kF32, kF16, kBF16, kInt8, kInt16 };

// A matrix [rows, columns] in panels of kPanelRows rows; rows that pad the last panel are zero.
//
// Float formats: a panel is [columns][kPanelRows] elements. With kFp8, whose scale type is kNone too, kPanelRows scales
// (float) stand before the columns of each group.
//
// Codes: a panel is a sequence of records, one per `group` columns, the last one perhaps of fewer: the codes, column by
// column padded with zeros to whole octets, then kPanelRows scales, then kPanelRows minima, like the scales, or zero
// points (bytes) if these differ within the matrix. A weight is (code - zero) * scale, or code * scale - minimum. An
// octet of int8 is two quads, each with the four codes of row 0, then of row 1, and so on. An octet of int4 is one quad
// of bytes, whose low nibbles are its first four columns and whose high nibbles are the next four. int6 has
// pieces of 16 columns, four quads in the place of three: the first three in the low bits, the fourth, two bits each,
// in the two high bits of the three. int5 has pieces of 32 columns, eight quads in the place of five: the sixth in the
// three high bits of the first and the two highest of the second, the seventh likewise in the third and fourth, the
// eighth in the three high bits of the fifth, bit 5 of the second and bit 5 of the fourth. Records of both are of whole
// pieces. With kProduct, the f16 factors of the scales, and those of the minima, of all rows stand before the records
// of an activation block. With an `order`, column i of the packed matrix is column order[i] of the weight.
struct PackedMatrix {
    const std::uint8_t* data;
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t panel_bytes;
    std::int64_t group;          // columns of a full record: at most kActivationColumns; kFp8: of kBlockColumns each
    const std::int32_t* order;   // codes: [columns], or null when columns have their places
    std::int64_t block_records;  // records that share the scale of an activation block
    // kInt4: the zero point of all, or null when each record has its own, or minima. kInt5, kInt6: that of all, which
    // counts beside minima too.
    const std::uint8_t* zero;
    bool minima;  // each record has them
    Format format;
    ScaleType scale_type;
};

// Quantizes one token of a tile (of at most KernelTable::tile_tokens) for products with codes: x = scale * code, one
// scale per token and block. Against kInt4 a code has 8 bits (-127 .. 127); against others it has 15 (-16256 .. 16256),
// so that the error of the activations is small beside that of the weights. A block with a value that is not finite
// gets the scale NaN.
struct QuantizeJob {
    const PackedMatrix* matrix;
    const float* x;
    std::uint8_t* tile;  // KernelTable::tile_bytes for `tokens` tokens
    int tokens;
    int token;
};

// y[t, r] = sum_c x[t, c] * w[r, c] + bias[r] for the rows of some panels and up to kLinearTokens tokens.
struct LinearJob {
    const PackedMatrix* matrix;
    std::int64_t panel_begin;
    std::int64_t panel_end;
    const float* x;  // for float formats
    std::int64_t x_stride;
    const std::uint8_t* tiles;  // for codes: the tokens in tiles of KernelTable::tile_tokens, the last perhaps smaller
    std::int64_t tile_stride;
    int tokens;
    float* y;
    std::int64_t y_stride;
    const float* bias;  // [rows] or null
    float* scratch;     // KernelTable::linear_scratch floats, aligned to 64 bytes
};

// Consecutive tokens of one sequence, the query heads of one KV head, over pages of one segment of the sequence. Fills
// a state of KernelTable::attention_state floats per query, token by token and head by head.
struct AttentionJob {
    const float* q;  // the first query head of the first token
    std::int64_t q_stride;
    int tokens;
    std::int64_t position;  // of the first token
    int heads;              // query heads that read this KV head
    int head_dim;
    float scale;
    std::int64_t window;        // positions seen, or 0 for all
    std::int64_t chunk;         // positions are seen from the last multiple of this on, or 0
    std::int64_t last;          // the last position that all tokens see, or -1: each sees those up to its own
    float softcap;              // or 0
    const std::uint8_t* cache;  // page 0 of this layer and KV head
    std::int64_t page_bytes;
    const std::int32_t* page_ids;
    std::int64_t page_begin;
    std::int64_t page_end;
    KVType kv_type;
    float* states;
    float* scratch;  // KernelTable::attention_scratch floats, aligned to 64 bytes
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

// One token's choice of experts (windlass.program.ops.Route).
struct RouteJob {
    const float* x;  // [experts]
    int experts;
    int top_k;
    bool sigmoid;
    bool normalize;
    float scale;
    const float* bias;  // [experts] or null
    int groups;
    int top_groups;
    bool top2_sum;
    float* out;      // [experts]
    float* scratch;  // kRouteNumbers * experts
};
inline constexpr int kRouteNumbers = 4;

// Every result depends only on the row it belongs to: not on the number of tokens, their grouping into jobs, or
// threads.
struct KernelTable {
    const char* name;
    std::size_t linear_scratch;
    std::size_t (*attention_scratch)(int head_dim);
    std::size_t (*attention_state)(int head_dim);
    int (*tile_tokens)(const PackedMatrix& matrix);
    std::size_t (*tile_bytes)(const PackedMatrix& matrix, int tokens);
    void (*quantize)(const QuantizeJob& job);
    void (*linear)(const LinearJob& job);
    void (*embed)(const PackedMatrix& table, std::int64_t row, float* out);
    // No weight, or no bias, is null. `out` of these and of the activations may be `x`.
    void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t width, float* out);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, std::int64_t width,
                       float* out);
    void (*rope)(float* x, const float* cos, const float* sin, std::int64_t heads, std::int64_t head_dim,
                 std::int64_t half);
    void (*store_kv)(const StoreKVJob& job);
    void (*attention)(const AttentionJob& job);
    // Adds what the queries saw in a later segment.
    void (*merge_attention)(float* states, const float* later, int queries, int head_dim);
    // Writes the outputs of tokens x heads queries. `sinks`, a score per head that no key has, or null.
    void (*finish_attention)(const float* states, int tokens, int heads, int head_dim, const float* sinks, float* out,
                             std::int64_t out_stride);
    void (*activation)(ActivationKind kind, const float* x, std::int64_t width, float* out);
    // `width` is that of `out`.
    void (*gated_activation)(ActivationKind kind, const float* x, std::int64_t width, float* out);
    void (*add)(float* x, const float* y, std::int64_t width);
    // x += y * factor
    void (*add_scaled)(float* x, const float* y, float factor, std::int64_t width);
    void (*scale)(float* x, float factor, std::int64_t width);
    // x *= sigmoid(gate)
    void (*sigmoid_gate)(float* x, float gate, std::int64_t width);
    // x = cap * tanh(x / cap)
    void (*softcap)(float* x, float cap, std::int64_t width);
    void (*route)(const RouteJob& job);
    // The largest of each kSamplingBlock values, the last block perhaps shorter. False when any value is a NaN.
    bool (*block_maxima)(const float* x, std::int64_t count, float* maxima);
    // out[i] = e^((x[i] - largest) * inverse_temperature), where no x[i] is above `largest`; returns their sum.
    double (*likelihoods)(const float* x, std::int64_t count, float largest, double inverse_temperature, double* out);
};

}  // namespace windlass
