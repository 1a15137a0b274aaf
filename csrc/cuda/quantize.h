// Activations to int8, an octet (8 columns) per thread, and the norm before it: csrc/README.md,
// "The numeric contract", 2 and 5. The same functions for the prologue of one token's matmul and
// for many tokens, so that both give the same bits.
#pragma once

#include "cuda/gemv_shared.h"
#include "cuda/intrinsics.h"
#include "cuda/layout.h"
#include "cuda/math.h"

namespace llama2q::cuda {

inline constexpr int kOctet = 8;

// x[column .. column + 8), of `cols` columns; absent ones are 0. x + column is aligned to 16 bytes
// if `aligned`.
__device__ __forceinline__ void load_octet(const float* x, int column, int cols, bool aligned,
                                           float (&v)[kOctet]) {
  if (aligned && column + kOctet <= cols) {
    const float4 low = *reinterpret_cast<const float4*>(x + column);
    const float4 high = *reinterpret_cast<const float4*>(x + column + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  } else {
    for (int i = 0; i < kOctet; ++i) v[i] = column + i < cols ? x[column + i] : 0.0f;
  }
}

// 1 / sqrt(mean of squares + eps) of a row, for every thread of a block of kRowThreads. Thread i
// sums the octets i, i + 256, ... in two chains; then a tree over the warp, and the warps in
// ascending order. scratch: f32 [kRowWarps] of shared memory, not read or written after the next
// sync_block().
__device__ __forceinline__ float inverse_rms(const float* x, int cols, bool aligned, float eps,
                                             float* scratch) {
  float even = 0.0f, odd = 0.0f;
  for (int column = static_cast<int>(threadIdx.x) * kOctet; column < cols;
       column += kRowThreads * kOctet) {
    float v[kOctet];
    load_octet(x, column, cols, aligned, v);
    for (int i = 0; i < kOctet; i += 2) {
      even = fmaf(v[i], v[i], even);
      odd = fmaf(v[i + 1], v[i + 1], odd);
    }
  }
  float sum = even + odd;
  for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane() == 0) scratch[threadIdx.x / kLanes] = sum;
  sync_block();
  float total = scratch[0];
  for (int warp = 1; warp < kRowWarps; ++warp) total += scratch[warp];
  return 1.0f / sqrtf(total / static_cast<float>(cols) + eps);
}

// v = (v * r) * weight.
__device__ __forceinline__ void normalize(float (&v)[kOctet], const float (&weight)[kOctet],
                                          float r) {
  for (int i = 0; i < kOctet; ++i) v[i] = v[i] * r * weight[i];
}

// x / 127, rounded to nearest: a quotient from the rounded reciprocal, and its remainder, which is
// exact. x >= 2^-100.
__device__ __forceinline__ float over_127(float x) {
  constexpr float kReciprocal = 1.0f / 127.0f;
  const float quotient = x * kReciprocal;
  return fmaf(fmaf(-127.0f, quotient, x), kReciprocal, quotient);
}

struct QuantizedOctet {
  uint2 codes;    // columns 0-3, 4-7
  float scale;    // of the group
  int32_t start;  // of the group: kFloatBits - 128 * (sum of its codes)
  bool finite;    // whether the group is; if not, the rest means nothing
};

// A group is kGroup / 8 neighbouring lanes that begin at a multiple of that; all lanes of the warp
// call this.
template <int kGroup>
__device__ __forceinline__ QuantizedOctet quantize_octet(const float (&v)[kOctet]) {
  constexpr int kGroupLanes = kGroup / kOctet;
  uint32_t amax_bits = 0;
  for (int i = 0; i < kOctet; ++i) amax_bits = max(amax_bits, magnitude_bits(v[i]));
  for (int mask = 1; mask < kGroupLanes; mask *= 2) {
    amax_bits = max(amax_bits, shuffle_xor(amax_bits, mask));
  }
  QuantizedOctet out;
  out.finite = amax_bits < kInfinityBits;
  const bool zero = amax_bits < kSmallestAmaxBits || !out.finite;
  const float amax = __uint_as_float(amax_bits);
  const float inverse = zero ? 0.0f : 127.0f / amax;
  out.scale = zero ? 0.0f : over_127(amax);
  uint32_t words[2] = {0, 0};
  for (int i = 0; i < kOctet; ++i) {
    // Rounds to an integer, ties to even: the low byte of the sum's bits is the code.
    const float code = v[i] * inverse + 12582912.0f;
    words[i / 4] |= (__float_as_uint(code) & 0xffu) << i % 4 * 8;
  }
  out.codes = {words[0], words[1]};
  int32_t sum = dot4(0x01010101u, words[0], dot4(0x01010101u, words[1], 0));
  for (int mask = 1; mask < kGroupLanes; mask *= 2) sum += shuffle_xor(sum, mask);
  out.start = kFloatBits - 128 * sum;
  return out;
}

// Byte of a token's 64 of a step where octet `octet` (0..7) of the step goes.
__device__ __forceinline__ int octet_byte(int octet) { return octet % 4 * 16 + octet / 4 * 8; }

}  // namespace llama2q::cuda
