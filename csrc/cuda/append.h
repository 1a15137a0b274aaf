// What becomes of the outputs of wq, wk, wv: RoPE, and K and V into the cache (csrc/README.md, "The
// numeric contract", 5 and 6; kernels/kv_rows.h).
#pragma once

#include "cuda/intrinsics.h"
#include "cuda/math.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {

enum class Role : int32_t { kPlain, kQuery, kKey, kValue };

// Index of the cache row of a token and KV head, counted in rows of head_dim elements.
__device__ __forceinline__ int64_t cache_row(const AppendTo& to, int64_t token, int64_t kv_head) {
  const int64_t position = to.positions[token];
  const int64_t block =
      to.block_tables[to.sequence_of_token[token] * to.max_blocks + position / kBlockSize];
  return (block * to.cache.n_kv_heads + kv_head) * kBlockSize + position % kBlockSize;
}

// Rotates element `row` of Q or K of a token; all lanes of a warp call this, and neighbouring lanes
// hold neighbouring rows.
__device__ __forceinline__ float rotate_row(const AppendTo& to, int64_t token, int row, float own,
                                            bool exists) {
  const float partner = shuffle_xor(own, 1);
  if (!exists) return own;
  const int head_dim = static_cast<int>(to.cache.head_dim);
  const int64_t at = token * (head_dim / 2) + row % head_dim / 2;
  return rotate(own, partner, row % 2 != 0, to.cos[at], to.sin[at]);
}

// Stores element `row` of K or V of a token in an f32 or f16 cache.
__device__ __forceinline__ void append_element(const AppendTo& to, bool key, int64_t token, int row,
                                               float x, FaultSite fault) {
  const int head_dim = static_cast<int>(to.cache.head_dim);
  const int64_t at = cache_row(to, token, row / head_dim) * head_dim + row % head_dim;
  void* const rows = key ? to.cache.k : to.cache.v;
  const uint32_t bits = magnitude_bits(x);
  if (to.cache.type == KvType::kF32) {
    static_cast<float*>(rows)[at] = x;
    if (bits >= kInfinityBits) raise_fault(fault.fault, fault.code);
  } else {
    static_cast<uint16_t*>(rows)[at] = float_to_half(x);
    if (bits > kLargestHalfBits) raise_fault(fault.fault, fault.code);
  }
}

// Quantizes a head's row of K or V into an int8 cache; by a warp. x: f32 [head_dim].
__device__ __forceinline__ void append_quantized(const AppendTo& to, bool key, int64_t token,
                                                 int kv_head, const float* x, FaultSite fault) {
  const int head_dim = static_cast<int>(to.cache.head_dim);
  uint32_t amax_bits = 0;
  for (int i = lane(); i < head_dim; i += kLanes) amax_bits = max(amax_bits, magnitude_bits(x[i]));
  for (int mask = 1; mask < kLanes; mask *= 2) {
    amax_bits = max(amax_bits, shuffle_xor(amax_bits, mask));
  }
  const uint16_t half = scale_to_half(__uint_as_float(amax_bits) / 127.0f);
  const bool usable = half < 0x7c00u;  // false for an infinite or NaN amax too
  const bool zero = half == 0 || !usable;
  const float d = zero ? 1.0f : half_to_float(half);
  const int64_t row = cache_row(to, token, kv_head);
  auto* const codes = static_cast<int8_t*>(key ? to.cache.k : to.cache.v) + row * head_dim;
  for (int i = lane(); i < head_dim; i += kLanes) {
    const float q = zero ? 0.0f : rintf(x[i] / d);
    codes[i] = static_cast<int8_t>(fminf(fmaxf(q, -127.0f), 127.0f));
  }
  if (lane() == 0) {
    (key ? to.cache.k_scales : to.cache.v_scales)[row] = half;
    if (!usable) raise_fault(fault.fault, fault.code);
  }
}

// K or V rows of an int8 cache lie in `scratch`, f32 [n_tokens, rows], as bands are finished; the
// block that stores the last band of a head quantizes the head. All threads of the block call this
// after a band of 16 rows from `first_row` on; `last` is a word of shared memory. Tokens [token,
// end) and their tickets, u32 [n_kv_heads].
__device__ __forceinline__ void append_finished_heads(const AppendTo& to, bool key,
                                                      const float* scratch, int first_row, int rows,
                                                      int token, int end, uint32_t* tickets,
                                                      int* last, FaultSite fault) {
  const int head_dim = static_cast<int>(to.cache.head_dim);
  const int last_row = min(first_row + static_cast<int>(kBandRows), rows) - 1;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int n_warps = static_cast<int>(blockDim.x) / kLanes;
  for (int head = first_row / head_dim; head <= last_row / head_dim; ++head) {
    sync_block();
    if (threadIdx.x == 0) {
      const int first_band = head * head_dim / static_cast<int>(kBandRows);
      const int last_band = ((head + 1) * head_dim - 1) / static_cast<int>(kBandRows);
      const uint32_t ticket = take_ticket(tickets + head);
      *last = ticket == static_cast<uint32_t>(last_band - first_band);
      if (*last != 0) tickets[head] = 0;
    }
    sync_block();
    if (*last == 0) continue;
    for (int t = token + warp; t < end; t += n_warps) {
      append_quantized(to, key, t, head, scratch + int64_t{t} * rows + head * head_dim, fault);
    }
  }
}

}  // namespace llama2q::cuda
