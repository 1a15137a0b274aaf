// RoPE of q and k, then K and V to the cache: for steps whose matmul leaves all three in f32.
#include "cuda/attention.h"
#include "cuda/intrinsics.h"
#include "cuda/kv_rows.h"
#include "cuda/math.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
// Pairs of a row that a lane holds: lane + 32 i.
constexpr int kPairs = static_cast<int>(kMostHeadDim) / 64;

// Pairs of a row of K or V, by one warp.
__device__ void store_row(void* rows, uint16_t* scales, int64_t row, const float2 (&x)[kPairs],
                          const RopeAppendArgs& args) {
  const KvLayerView& cache = args.cache;
  const int n_pairs = static_cast<int>(cache.head_dim) / 2;
  uint32_t largest = 0;
  for (int i = 0; i < kPairs; ++i) {
    largest = max(largest, max(magnitude_bits(x[i].x), magnitude_bits(x[i].y)));
  }
  largest = warp_max(largest);
  RowScale scale{};
  bool finite = cache.type == KvType::kF32 ? largest < kInfinityBits : largest <= kLargestHalfBits;
  if (cache.type == KvType::kInt8) {
    scale = row_scale(largest);
    finite = scale.finite;
  }
  if (lane() == 0) {
    if (!finite) raise_fault(args.fault, args.fault_code);
    if (cache.type == KvType::kInt8) scales[row] = scale.half;
  }
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane() + 32 * i;
    if (pair >= n_pairs) continue;
    const int64_t at = row * n_pairs + pair;
    if (cache.type == KvType::kF32) {
      static_cast<float2*>(rows)[at] = x[i];
    } else if (cache.type == KvType::kF16) {
      static_cast<uint32_t*>(rows)[at] = pack_halves(x[i].x, x[i].y);
    } else {
      const uint32_t low = int8_code(x[i].x, scale.divisor);
      const uint32_t high = int8_code(x[i].y, scale.divisor);
      static_cast<uint16_t*>(rows)[at] = static_cast<uint16_t>(low | high << 8);
    }
  }
}

// A warp per row of q, k and v; rows of a token stand together.
__global__ void __launch_bounds__(kThreads) rope_append_rows(const RopeAppendArgs args) {
  wait_for_previous();
  let_next_start();
  const KvLayerView& cache = args.cache;
  const int n_heads = static_cast<int>(args.n_heads);
  const int n_kv_heads = static_cast<int>(cache.n_kv_heads);
  const int n_pairs = static_cast<int>(cache.head_dim) / 2;
  const int rows_per_token = n_heads + 2 * n_kv_heads;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= args.tokens.n_tokens * rows_per_token) return;
  const int64_t token = item / rows_per_token;
  const int head = static_cast<int>(item % rows_per_token);
  const bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
  const int kv_head = is_v ? head - n_heads - n_kv_heads : head - n_heads;
  const float* from =
      is_q ? args.q + (token * n_heads + head) * cache.head_dim
           : (is_v ? args.v : args.k) + (token * n_kv_heads + kv_head) * cache.head_dim;
  float2 x[kPairs];
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane() + 32 * i;
    x[i] = make_float2(0.0f, 0.0f);
    if (pair >= n_pairs) continue;
    x[i] = reinterpret_cast<const float2*>(from)[pair];
    if (is_v) continue;
    const int64_t angle = token * n_pairs + pair;
    const float c = args.cos[angle], s = args.sin[angle];
    x[i] = make_float2(rotate(x[i].x, x[i].y, false, c, s), rotate(x[i].y, x[i].x, true, c, s));
  }
  if (is_q) {
    for (int i = 0; i < kPairs; ++i) {
      const int pair = lane() + 32 * i;
      if (pair >= n_pairs) continue;
      reinterpret_cast<float2*>(args.q + (token * n_heads + head) * cache.head_dim)[pair] = x[i];
    }
    return;
  }
  const int32_t position = args.tokens.positions[token];
  const int32_t* table =
      args.tokens.block_tables + args.tokens.sequence_of_token[token] * args.tokens.max_blocks;
  const int32_t block = table[position / kBlockSize];
  const int64_t row = cache_row(cache, block, kv_head, static_cast<int>(position % kBlockSize));
  if (is_v) {
    store_row(cache.v, cache.v_scales, row, x, args);
  } else {
    store_row(cache.k, cache.k_scales, row, x, args);
  }
}

}  // namespace

void rope_append(const Stream& stream, const RopeAppendArgs& args) {
  const int64_t n_rows = args.tokens.n_tokens * (args.n_heads + 2 * args.cache.n_kv_heads);
  if (n_rows == 0) return;
  const auto n_blocks = static_cast<unsigned>((n_rows + kWarps - 1) / kWarps);
  launch(stream, rope_append_rows, dim3(n_blocks), dim3(kThreads), 0, args);
}

}  // namespace llama2q::cuda
