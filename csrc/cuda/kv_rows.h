// Rows of the KV cache, in device code: where they lie, and how K and V of a token are stored. The
// bytes are those of kernels/kv_rows.h.
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/math.h"
#include "kernels/args.h"

namespace llama2q::cuda {

// Index of a cache row, counted in rows of head_dim elements.
__device__ __forceinline__ int64_t cache_row(const KvLayerView& cache, int32_t block, int kv_head,
                                             int slot) {
  return (block * cache.n_kv_heads + kv_head) * kBlockSize + slot;
}

// The largest of a warp's values.
__device__ __forceinline__ uint32_t warp_max(uint32_t x) {
  for (int mask = 16; mask > 0; mask /= 2) x = max(x, shuffle_xor(x, mask));
  return x;
}

// The scale of an int8 row with this amax; `divisor` is what its values are divided by, 0 if all
// codes are 0. Says whether it is finite.
struct RowScale {
  uint16_t half;
  float divisor;
  bool finite;
};

__device__ __forceinline__ RowScale row_scale(uint32_t amax_bits) {
  RowScale scale;
  scale.half = scale_to_half(__uint_as_float(amax_bits) / 127.0f);
  scale.finite = scale.half < 0x7c00u;  // false for an infinite or NaN amax, too
  scale.divisor = scale.finite ? half_to_float(scale.half) : 0.0f;
  return scale;
}

__device__ __forceinline__ uint32_t int8_code(float x, float divisor) {
  if (divisor == 0.0f) return 0;
  const float bounded = fminf(fmaxf(x / divisor, -127.0f), 127.0f);
  return static_cast<uint32_t>(__float2int_rn(bounded)) & 0xffu;
}

}  // namespace llama2q::cuda
