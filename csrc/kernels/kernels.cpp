// All kernels of one instruction set. The build compiles this file once per set, with the set's flags and
// WINDLASS_KERNELS as its name. Everything but the table has internal linkage and nothing of the standard library is
// instantiated: the linker must never merge code compiled with different flags.
#include <cstddef>
#include <cstdint>

#if !defined(WINDLASS_NO_INTRINSICS)
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

#include "kernels/table.h"

#define WINDLASS_QUOTE_(name) #name
#define WINDLASS_QUOTE(name) WINDLASS_QUOTE_(name)
#define WINDLASS_JOIN_(a, b) a##b
#define WINDLASS_JOIN(a, b) WINDLASS_JOIN_(a, b)

namespace windlass {
namespace {

// Each may use what came before.
#include "kernels/simd.inl"

#include "kernels/products.inl"

#include "kernels/linear_float.inl"

#include "kernels/linear_codes.inl"

#include "kernels/linear_unpacked.inl"

#include "kernels/quantize.inl"

#include "kernels/linear.inl"

#include "kernels/rows.inl"

#include "kernels/route.inl"

#include "kernels/attention.inl"

#include "kernels/attention_floats.inl"

#include "kernels/attention_codes.inl"

#include "kernels/attention_jobs.inl"

#include "kernels/sampling.inl"

}  // namespace

extern const KernelTable WINDLASS_JOIN(kernels_, WINDLASS_KERNELS);

const KernelTable WINDLASS_JOIN(kernels_, WINDLASS_KERNELS) = {
    .name = WINDLASS_QUOTE(WINDLASS_KERNELS),
    .linear_scratch = kUnpackedFloats + kSumFloats,
    .attention_scratch = attention_scratch,
    .attention_state = attention_state,
    .tile_tokens = tile_tokens,
    .tile_bytes = tile_bytes,
    .quantize = quantize,
    .linear = linear,
    .embed = embed,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rope = rope,
    .store_kv = store_kv,
    .attention = attention,
    .merge_attention = merge_attention,
    .finish_attention = finish_attention,
    .activation = activation,
    .gated_activation = gated_activation,
    .add = add,
    .add_scaled = add_scaled,
    .scale = scale,
    .sigmoid_gate = sigmoid_gate,
    .softcap = softcap,
    .route = route,
    .block_maxima = block_maxima,
    .likelihoods = likelihoods,
};

}  // namespace windlass
