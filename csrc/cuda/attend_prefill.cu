// Attention for many tokens on tensor cores: online softmax over blocks of 64 keys, as in
// FlashAttention-2.
//
// A block holds a tile of 64 query rows of one KV head, a warp 16 of them, over all their keys. The
// next block of the cache is copied while the present one is multiplied: of K during the product
// with V, of V during the product with K. Scores are in units of log 2, so that exp is exp2.
#include <cmath>

#include "cuda/attention.h"
#include "cuda/intrinsics.h"
#include "cuda/kv_rows.h"
#include "cuda/prefill_tile.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = kPrefillThreads;
constexpr int kKeys = kPrefillKeys;
constexpr int kKeyTiles = kKeys / 8;
static_assert(kKeys == kBlockSize && kPrefillRows == kThreads / 32 * 16);

struct Prefill {
  AttendArgs attend;
  const PrefillTile* tiles;
  float q_scale;  // scale / log 2
};

// Index of row r of a tile among q and out, in rows of head_dim.
__device__ __forceinline__ int64_t query_row(const AttendArgs& args, int kv_head, int r) {
  const int n_kv_heads = static_cast<int>(args.cache.n_kv_heads);
  const int group = static_cast<int>(args.n_heads) / n_kv_heads;
  return int64_t{r / group} * args.n_heads + kv_head * group + r % group;
}

// Rows g and g + 8 of a warp's 16, and their state; a lane holds two of every 8 columns.
template <int kDim>
struct WarpRows {
  HalfA q[kDim / 16];
  FloatC out[kDim / 8];
  float largest[2], sum[2];  // sum: of this lane's keys
  int position[2];
};

// Two of q's values as halves; `largest`: the bits of the largest magnitude so far.
__device__ __forceinline__ uint32_t load_q(const float* q, float scale, uint32_t& largest) {
  const float2 x = *reinterpret_cast<const float2*>(q);
  const float low = x.x * scale, high = x.y * scale;
  largest = max(largest, max(magnitude_bits(low), magnitude_bits(high)));
  return pack_halves(low, high);
}

template <int kDim>
__device__ __forceinline__ void load_rows(const Prefill& args, int kv_head, const int (&index)[2],
                                          int group, WarpRows<kDim>& rows) {
  const int column = 2 * (lane() % 4);
  uint32_t largest = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* q = args.attend.q + query_row(args.attend, kv_head, index[half]) * kDim + column;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      rows.q[k].r[half] = load_q(q + 16 * k, args.q_scale, largest);
      rows.q[k].r[half + 2] = load_q(q + 16 * k + 8, args.q_scale, largest);
    }
    rows.position[half] = args.attend.tokens.positions[index[half] / group];
    rows.largest[half] = -INFINITY;
    rows.sum[half] = 0.0f;
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) rows.out[n] = FloatC{};
  if (largest > kLargestHalfBits) raise_fault(args.attend.fault, args.attend.fault_code);
}

// Scores of the warp's rows and the 64 keys of a tile of K.
template <int kDim>
__device__ __forceinline__ void score_tile(const WarpRows<kDim>& rows, const unsigned char* keys,
                                           FloatC (&scores)[kKeyTiles]) {
  using Tile = HalfTile<kDim>;
  // Matrices of load_matrix: keys 0-7 and 8-15 of 16, of each the runs 0 and 1.
  const int key = lane() / 16 * 8 + lane() % 8, run = lane() / 8 % 2;
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) scores[n] = FloatC{};
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      uint32_t r[4];
      load_matrix_x4(r, keys + Tile::offset(8 * n + key, 2 * k + run));
      mma_f16(scores[n], rows.q[k], HalfB{{r[0], r[1]}});
      mma_f16(scores[n + 1], rows.q[k], HalfB{{r[2], r[3]}});
    }
  }
}

// Softmax of a tile's scores, which become weights: largest, sum and out go along.
template <int kDim>
__device__ __forceinline__ void soften(WarpRows<kDim>& rows, int first_key,
                                       FloatC (&scores)[kKeyTiles]) {
  const int key = first_key + 2 * (lane() % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = rows.largest[half];
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n].r[2 * half + i];
        if (key + 8 * n + i > rows.position[half]) score = -INFINITY;
        largest = fmaxf(largest, score);
      }
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    const float factor = exp2_approximate(rows.largest[half] - largest);
    rows.largest[half] = largest;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n].r[2 * half + i];
        score = exp2_approximate(score - largest);
        sum += score;
      }
    }
    rows.sum[half] = fmaf(rows.sum[half], factor, sum);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      rows.out[n].r[2 * half] *= factor;
      rows.out[n].r[2 * half + 1] *= factor;
    }
  }
}

// out += weights * values.
template <int kDim>
__device__ __forceinline__ void add_tile(WarpRows<kDim>& rows, const unsigned char* values,
                                         const FloatC (&weights)[kKeyTiles]) {
  using Tile = HalfTile<kDim>;
  // Matrices, transposed: keys 0-7 and 8-15 of 16 of run 0, then of run 1.
  const int key = lane() / 8 % 2 * 8 + lane() % 8, run = lane() / 16;
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const FloatC &low = weights[2 * k], &high = weights[2 * k + 1];
    const HalfA a{{pack_halves(low.r[0], low.r[1]), pack_halves(low.r[2], low.r[3]),
                   pack_halves(high.r[0], high.r[1]), pack_halves(high.r[2], high.r[3])}};
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t r[4];
      load_matrix_x4_trans(r, values + Tile::offset(16 * k + key, n + run));
      mma_f16(rows.out[n], a, HalfB{{r[0], r[1]}});
      mma_f16(rows.out[n + 1], a, HalfB{{r[2], r[3]}});
    }
  }
}

template <int kDim>
__device__ __forceinline__ void store_rows(const Prefill& args, int kv_head, const int (&index)[2],
                                           int n_rows, const int (&row)[2],
                                           const WarpRows<kDim>& rows) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = rows.sum[half];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (row[half] >= n_rows) continue;
    float* out =
        args.attend.out + query_row(args.attend, kv_head, index[half]) * kDim + 2 * (lane() % 4);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(out + 8 * n) =
          make_float2(rows.out[n].r[2 * half] / sum, rows.out[n].r[2 * half + 1] / sum);
    }
  }
}

template <int kDim, class Element>
__global__ void __launch_bounds__(kThreads, 2) attend_tile(const Prefill args) {
  constexpr bool kInt8 = sizeof(Element) == 1;
  using Tile = HalfTile<kDim>;
  unsigned char* const keys = dynamic_shared();
  unsigned char* const values = keys + Tile::kBytes;
  // int8 only: the bytes of K and V, and K's scales.
  unsigned char* const raw_keys = values + Tile::kBytes;
  unsigned char* const raw_values = raw_keys + Int8Blocks<kDim>::kRawBytes;
  auto* const key_scales = reinterpret_cast<float*>(raw_values + Int8Blocks<kDim>::kRawBytes);
  wait_for_previous();
  let_next_start();
  const KvLayerView& cache = args.attend.cache;
  const TokenView& tokens = args.attend.tokens;
  const int kv_head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int group = static_cast<int>(args.attend.n_heads / cache.n_kv_heads);
  const PrefillTile tile = args.tiles[blockIdx.y];
  const int last_position = tokens.positions[(tile.first_row + tile.n_rows - 1) / group];
  const int32_t* table =
      tokens.block_tables + tokens.sequence_of_token[tile.first_row / group] * tokens.max_blocks;
  const int n_blocks = last_position / kKeys + 1;

  // Rows that are not there are copies of the last one.
  const int warp_row = thread / 32 * 16;
  const int row[2] = {warp_row + lane() / 4, warp_row + lane() / 4 + 8};
  const int index[2] = {tile.first_row + min(row[0], tile.n_rows - 1),
                        tile.first_row + min(row[1], tile.n_rows - 1)};
  const int warp_last = tile.first_row + min(warp_row + 15, tile.n_rows - 1);
  const int warp_position = warp_row < tile.n_rows ? tokens.positions[warp_last / group] : -1;

  const auto row_of = [&](int32_t block) { return cache_row(cache, block, kv_head, 0); };
  const auto present = [&](int i) { return last_position + 1 - i * kKeys; };
  const auto* k = static_cast<const Element*>(cache.k);
  const auto* v = static_cast<const Element*>(cache.v);
  int32_t block = table[0];
  uint16_t key_scale = 0, value_scales[Int8Blocks<kDim>::Runs::kRows] = {};
  const auto start_keys = [&](int32_t id, int i) {
    const int64_t at = row_of(id);
    if constexpr (kInt8) {
      Int8Blocks<kDim>::start(k + at * kDim, present(i), raw_keys);
      key_scale = thread < min(present(i), kKeys) ? cache.k_scales[at + thread] : uint16_t{0};
    } else {
      HalfBlocks<kDim>::start(k + at * kDim, present(i), keys);
    }
  };
  const auto start_values = [&](int32_t id, int i) {
    const int64_t at = row_of(id);
    if constexpr (kInt8) {
      Int8Blocks<kDim>::start(v + at * kDim, present(i), raw_values);
      Int8Blocks<kDim>::load_scales(cache.v_scales + at, present(i), value_scales);
    } else {
      HalfBlocks<kDim>::start(v + at * kDim, present(i), values);
    }
  };

  start_keys(block, 0);
  if constexpr (kInt8) start_values(block, 0);
  WarpRows<kDim> rows;
  load_rows<kDim>(args, kv_head, index, group, rows);
  for (int i = 0; i < n_blocks; ++i) {
    const bool more = i + 1 < n_blocks;
    const int32_t next = more ? table[i + 1] : 0;
    if constexpr (kInt8) {
      wait_copies<1>();  // K's bytes are here, V's may not be
      Int8Blocks<kDim>::template widen<false>(raw_keys, value_scales, keys);
      if (thread < kKeys) key_scales[thread] = half_to_float(key_scale);
      if (more) {
        start_keys(next, i + 1);
      } else {
        commit_copies();
      }
      sync_block();
    } else {
      wait_copies<0>();
      sync_block();  // K is here, and the last V has been read
      start_values(block, i);
    }
    FloatC scores[kKeyTiles];
    const bool sees = i * kKeys <= warp_position;
    if (sees) {
      score_tile<kDim>(rows, keys, scores);
      if constexpr (kInt8) {
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          const auto scale =
              *reinterpret_cast<const float2*>(key_scales + 8 * n + 2 * (lane() % 4));
          scores[n].r[0] *= scale.x;
          scores[n].r[1] *= scale.y;
          scores[n].r[2] *= scale.x;
          scores[n].r[3] *= scale.y;
        }
      }
      soften<kDim>(rows, i * kKeys, scores);
    }
    if constexpr (kInt8) {
      wait_copies<1>();
      Int8Blocks<kDim>::template widen<true>(raw_values, value_scales, values);
      if (more) {
        start_values(next, i + 1);
      } else {
        commit_copies();
      }
      sync_block();
    } else {
      wait_copies<0>();
      sync_block();  // V is here, and K has been read
      if (more) start_keys(next, i + 1);
    }
    if (sees) add_tile<kDim>(rows, values, scores);
    block = next;
  }
  store_rows<kDim>(args, kv_head, index, tile.n_rows, row, rows);
}

template <int kDim, class Element>
void launch_tiles(const Stream& stream, const Prefill& args, int64_t n_tiles) {
  constexpr size_t kSharedBytes =
      sizeof(Element) == 1 ? Int8Blocks<kDim>::kSharedBytes : HalfBlocks<kDim>::kSharedBytes;
  const dim3 grid(static_cast<unsigned>(args.attend.cache.n_kv_heads),
                  static_cast<unsigned>(n_tiles));
  launch(stream, attend_tile<kDim, Element>, grid, dim3(kThreads), kSharedBytes, args);
}

}  // namespace

bool has_prefill(KvType type, int64_t head_dim) {
  return type != KvType::kF32 && (head_dim == 64 || head_dim == 128);
}

void attend_prefill(const Stream& stream, const AttendArgs& args, const PrefillTile* tiles,
                    int64_t n_tiles) {
  if (n_tiles == 0) return;
  const Prefill prefill{args, tiles, args.scale * 0x1.715476p+0f};
  const bool wide = args.cache.head_dim == 128;
  if (args.cache.type == KvType::kF16) {
    if (wide) return launch_tiles<128, uint16_t>(stream, prefill, n_tiles);
    return launch_tiles<64, uint16_t>(stream, prefill, n_tiles);
  }
  if (wide) return launch_tiles<128, int8_t>(stream, prefill, n_tiles);
  launch_tiles<64, int8_t>(stream, prefill, n_tiles);
}

}  // namespace llama2q::cuda
