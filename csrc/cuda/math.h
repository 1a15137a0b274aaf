// exp, SwiGLU, RoPE and scales as kernels/math.h, kernels/rows.h and base/types.h define them, one
// value at a time. Compiled without contraction: what is fused is written so.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "cuda/intrinsics.h"

namespace llama2q::cuda {

inline constexpr uint32_t kInfinityBits = 0x7f800000u;
inline constexpr uint32_t kSmallestAmaxBits = 0x0d800000u;  // 2^-100
inline constexpr uint32_t kLargestHalfBits = 0x477fe000u;   // 65504

__device__ __forceinline__ uint32_t magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

// exp(0) = 1, +0 for x <= -87, exp(87) above 87; NaN stays NaN.
__device__ __forceinline__ float exp_of(float x) {
  const float above = x < -87.0f ? -87.0f : x;
  const float bounded = above > 87.0f ? 87.0f : above;
  const float n = rintf(bounded * 0x1.715476p+0f);
  float r = fmaf(n, -0x1.62e4p-1f, bounded);
  r = fmaf(n, -0x1.7f7d1cp-20f, r);
  float p = 0x1.a1520cp-13f;
  p = fmaf(p, r, 0x1.6d43b4p-10f);
  p = fmaf(p, r, 0x1.1110c6p-7f);
  p = fmaf(p, r, 0x1.5554e8p-5f);
  p = fmaf(p, r, 0x1.555556p-3f);
  p = fmaf(p, r, 0x1p-1f);
  const float y = 1.0f + fmaf(r * r, p, r);
  const float result = y * __int_as_float((__float2int_rn(n) + 127) << 23);
  return x <= -87.0f ? 0.0f : result;
}

// (gate / (1 + exp(-gate))) * up.
__device__ __forceinline__ float swiglu(float gate, float up) {
  return gate / (1.0f + exp_of(-gate)) * up;
}

// One of a pair (x0, x1): `own`, the other is `partner`; `odd` says which.
__device__ __forceinline__ float rotate(float own, float partner, bool odd, float c, float s) {
  return odd ? fmaf(partner, s, own * c) : fmaf(own, c, -(partner * s));
}

// A scale as f16: to nearest, below 2^-14 up in magnitude; overflow gives infinity. x >= 0.
__device__ __forceinline__ uint16_t scale_to_half(float x) {
  if (x == 0.0f || x >= 0x1p-14f || x != x) return float_to_half(x);
  const float steps = x * 0x1p24f;  // of f16's subnormal numbers; exact
  return static_cast<uint16_t>(ceilf(steps));
}

}  // namespace llama2q::cuda
