// Attention for a few tokens: split over the positions, all query heads of a KV head together.
//
// A block holds one token, one KV head (with up to kGroup of its query heads) and one split of
// kSplit positions: each of its warps kWarpKeys of them, scores first, then values. Blocks of a
// token and head leave their states in scratch; the last one to arrive folds them. Everything is
// f32; which sums are taken in which order depends on the position alone.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/decode_rows.h"
#include "cuda/intrinsics.h"
#include "cuda/kv_rows.h"
#include "cuda/math.h"

namespace llama2q::cuda {
namespace {

constexpr int kSplit = 128;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpKeys = kSplit / kWarps;
static_assert(kWarpKeys == 32);  // the score of a key per lane
constexpr int kBlock = static_cast<int>(kBlockSize);

// Tokens of a launch: bounds the scratch.
constexpr int64_t kLaunchTokens = 16;

struct Decode {
  AttendArgs attend;
  float* states;  // f32 [n_tokens, n_heads, n_splits, head_dim], then [.., n_splits, 2]: m and l
  float* sums;
  uint32_t* tickets;  // u32 [n_tokens, heads of the grid]
  int n_splits;
};

// What a block knows of its query heads.
struct Heads {
  int first, n;  // n <= kGroup
  int kv_head;
};

template <int kGroup>
__device__ __forceinline__ Heads heads_of(const Decode& args) {
  const int n_kv_heads = static_cast<int>(args.attend.cache.n_kv_heads);
  const int group = static_cast<int>(args.attend.n_heads) / n_kv_heads;
  const int item = static_cast<int>(blockIdx.y), kv_head = item % n_kv_heads;
  const int pass = item / n_kv_heads * kGroup;
  return {kv_head * group + pass, min(group - pass, kGroup), kv_head};
}

template <class Shape>
struct SharedState {
  float weights[kWarps][kWarpKeys][Shape::kGroup];       // exp(s - m) [* v_scale]
  float values[kWarps][Shape::kGroup][Shape::kMostDim];  // sums of weight * v
  float largest[kWarps][Shape::kGroup], sums[kWarps][Shape::kGroup];
  float factors[kWarps][Shape::kGroup];
  float block_largest[Shape::kGroup], block_sums[Shape::kGroup];
  bool is_last;
};

// A piece of `n_rows` rows: zeros beyond them.
template <class Shape>
__device__ __forceinline__ typename Shape::Raw load_piece(const typename Shape::Element* rows,
                                                          int n_rows, int head_dim, int row,
                                                          int piece) {
  const int column = Shape::column(piece);
  if (row >= n_rows || (!Shape::kExact && column >= head_dim)) return Shape::Piece::absent();
  return *reinterpret_cast<const typename Shape::Raw*>(rows + row * head_dim + column);
}

// Scores of a warp's keys, of key Shape::row_of_sum() in each lane, not yet scaled.
template <class Shape>
__device__ __forceinline__ void score_keys(const typename Shape::Element* keys, int n_keys,
                                           int head_dim, const float* q, int n_heads,
                                           float (&scores)[Shape::kGroup]) {
  float of_lane[Shape::kGroup][Shape::kColumns];
  for (int h = 0; h < Shape::kGroup; ++h) {
    for (int p = 0; p < Shape::kPieces; ++p) {
      const int column = Shape::column(p);
      const bool present = h < n_heads && (Shape::kExact || column < head_dim);
      for (int i = 0; i < Shape::kWidth; i += 2) {
        const float2 pair = present
                                ? *reinterpret_cast<const float2*>(q + h * head_dim + column + i)
                                : make_float2(0.0f, 0.0f);
        of_lane[h][p * Shape::kWidth + i] = pair.x;
        of_lane[h][p * Shape::kWidth + i + 1] = pair.y;
      }
    }
  }
  float sums[Shape::kGroup][Shape::kBatches];
#pragma unroll
  for (int batch = 0; batch < Shape::kBatches; ++batch) {
    typename Shape::Raw raw[Shape::kBatch][Shape::kPieces];
    for (int s = 0; s < Shape::kBatch; ++s) {
      for (int p = 0; p < Shape::kPieces; ++p) {
        raw[s][p] = load_piece<Shape>(keys, n_keys, head_dim, Shape::row(batch, s), p);
      }
    }
    float dots[Shape::kGroup][Shape::kBatch];
    for (int s = 0; s < Shape::kBatch; ++s) {
      float k[Shape::kColumns];
      for (int p = 0; p < Shape::kPieces; ++p) {
        Shape::Piece::widen(raw[s][p], k + p * Shape::kWidth);
      }
      for (int h = 0; h < Shape::kGroup; ++h) {
        float dot = of_lane[h][0] * k[0];
        for (int i = 1; i < Shape::kColumns; ++i) dot = fmaf(of_lane[h][i], k[i], dot);
        dots[h][s] = dot;
      }
    }
    for (int h = 0; h < Shape::kGroup; ++h) {
      fold<Shape::kBatch>(dots[h], Shape::kLanes / 2);
      sums[h][batch] = dots[h][0];
    }
  }
  for (int h = 0; h < Shape::kGroup; ++h) {
    fold<Shape::kBatches>(sums[h], Shape::kBatches / 2);
    scores[h] = sums[h][0];
  }
}

// Sums of weight * value over a warp's keys, into shared.values[warp].
template <class Shape>
__device__ __forceinline__ void add_values(const typename Shape::Element* values, int n_keys,
                                           int head_dim, int warp, SharedState<Shape>& shared) {
  float sums[Shape::kGroup][Shape::kColumns];
  for (int h = 0; h < Shape::kGroup; ++h) {
    for (int i = 0; i < Shape::kColumns; ++i) sums[h][i] = 0.0f;
  }
#pragma unroll
  for (int batch = 0; batch < Shape::kBatches; ++batch) {
    typename Shape::Raw raw[Shape::kBatch][Shape::kPieces];
    for (int s = 0; s < Shape::kBatch; ++s) {
      for (int p = 0; p < Shape::kPieces; ++p) {
        raw[s][p] = load_piece<Shape>(values, n_keys, head_dim, Shape::row(batch, s), p);
      }
    }
    for (int s = 0; s < Shape::kBatch; ++s) {
      float v[Shape::kColumns];
      for (int p = 0; p < Shape::kPieces; ++p) {
        Shape::Piece::widen(raw[s][p], v + p * Shape::kWidth);
      }
      for (int h = 0; h < Shape::kGroup; ++h) {
        const float weight = shared.weights[warp][Shape::row(batch, s)][h];
        for (int i = 0; i < Shape::kColumns; ++i) sums[h][i] = fmaf(weight, v[i], sums[h][i]);
      }
    }
  }
  // Lanes that hold the same columns of other rows: their sums are dealt out by columns.
  constexpr int kLeft = Shape::kColumns / Shape::kRows;
  static_assert(kLeft >= 1 && (Shape::kRows == 1 || Shape::kPieces == 1));
  const int sum_of = lane() / Shape::kLanes;
  for (int h = 0; h < Shape::kGroup; ++h) {
    float by_part[kLeft][Shape::kRows];
    for (int i = 0; i < Shape::kColumns; ++i) by_part[i % kLeft][i / kLeft] = sums[h][i];
    for (int i = 0; i < kLeft; ++i) fold<Shape::kRows>(by_part[i], 16);
    if constexpr (Shape::kRows == 1) {
      for (int i = 0; i < Shape::kColumns; ++i) {
        const int column = Shape::column(i / Shape::kWidth) + i % Shape::kWidth;
        shared.values[warp][h][column] = by_part[i][0];
      }
    } else {
      for (int i = 0; i < kLeft; ++i) {
        shared.values[warp][h][Shape::column(0) + sum_of * kLeft + i] = by_part[i][0];
      }
    }
  }
}

// A warp's part of a split: n_keys keys from the slot on.
template <class Shape>
__device__ __forceinline__ void attend_keys(const Decode& args, const Heads& heads, int64_t token,
                                            int64_t row, int n_keys, int warp,
                                            SharedState<Shape>& shared) {
  using Element = typename Shape::Element;
  const KvLayerView& cache = args.attend.cache;
  const int head_dim = Shape::kExact ? Shape::kMostDim : static_cast<int>(cache.head_dim);
  const float* q = args.attend.q + (token * args.attend.n_heads + heads.first) * head_dim;
  float scores[Shape::kGroup];
  score_keys<Shape>(static_cast<const Element*>(cache.k) + row * head_dim, n_keys, head_dim, q,
                    heads.n, scores);
  const int key = Shape::row_of_sum();
  const bool present = key < n_keys;
  float scale = args.attend.scale, v_scale = 1.0f;
  if (Shape::kScaled && present) {
    scale = half_to_float(cache.k_scales[row + key]) * scale;
    v_scale = half_to_float(cache.v_scales[row + key]);
  }
  for (int h = 0; h < Shape::kGroup; ++h) {
    const float score = present ? scores[h] * scale : -INFINITY;
    float largest = score;
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    const float weight = exp_of(score - largest);
    float sum = weight;
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    shared.weights[warp][key][h] = Shape::kScaled ? weight * v_scale : weight;
    if (lane() == 0) {
      shared.largest[warp][h] = largest;
      shared.sums[warp][h] = sum;
    }
  }
  sync_warp();
  add_values<Shape>(static_cast<const Element*>(cache.v) + row * head_dim, n_keys, head_dim, warp,
                    shared);
}

// Folds the first n_splits states of head `head` into `out`, by the whole block. Warp w takes
// splits w, w + kWarps, ...; the warps' sums are added in ascending order.
template <class Shape>
__device__ __forceinline__ void fold_splits(const Decode& args, int64_t head, int n_splits,
                                            int head_dim, SharedState<Shape>& shared, float* out) {
  constexpr int kPairs = (Shape::kMostDim + 63) / 64;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const auto* sums = reinterpret_cast<const float2*>(args.sums) + head * args.n_splits;
  const float* states = args.states + head * args.n_splits * head_dim;
  float largest = -INFINITY;
  for (int s = lane(); s < n_splits; s += 32) largest = fmaxf(largest, sums[s].x);
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
  float l = 0.0f;
  float2 acc[kPairs];
  for (int i = 0; i < kPairs; ++i) acc[i] = make_float2(0.0f, 0.0f);
#pragma unroll 4
  for (int s = warp; s < n_splits; s += kWarps) {
    const float2 state = sums[s];
    const float factor = exp_of(state.x - largest);
    l = fmaf(state.y, factor, l);
    for (int i = 0; i < kPairs; ++i) {
      const int column = 2 * (lane() + 32 * i);
      if (column >= head_dim) continue;
      const auto* value = reinterpret_cast<const float2*>(states + s * head_dim + column);
      acc[i].x = fmaf(value->x, factor, acc[i].x);
      acc[i].y = fmaf(value->y, factor, acc[i].y);
    }
  }
  sync_block();  // shared memory is free
  for (int i = 0; i < kPairs; ++i) {
    const int column = 2 * (lane() + 32 * i);
    if (column >= head_dim) continue;
    shared.values[warp][0][column] = acc[i].x;
    shared.values[warp][0][column + 1] = acc[i].y;
  }
  if (lane() == 0) shared.sums[warp][0] = l;
  sync_block();
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
    float total = shared.values[0][0][d], sum = shared.sums[0][0];
    for (int w = 1; w < kWarps; ++w) {
      total += shared.values[w][0][d];
      sum += shared.sums[w][0];
    }
    out[d] = total / sum;
  }
}

template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kResident) attend_split(const Decode args) {
  __shared__ SharedState<Shape> shared;
  wait_for_previous();
  let_next_start();
  const AttendArgs& attend = args.attend;
  const KvLayerView& cache = attend.cache;
  const int64_t token = blockIdx.x;
  const int split = static_cast<int>(blockIdx.z), first_key = split * kSplit;
  const int n_keys = attend.tokens.positions[token] + 1;
  if (n_keys <= first_key) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int head_dim = Shape::kExact ? Shape::kMostDim : static_cast<int>(cache.head_dim);
  const Heads heads = heads_of<Shape::kGroup>(args);
  const int warp_key = first_key + warp * kWarpKeys;
  if (warp_key < n_keys) {
    const int32_t* table = attend.tokens.block_tables +
                           attend.tokens.sequence_of_token[token] * attend.tokens.max_blocks;
    const int64_t row =
        cache_row(cache, table[warp_key / kBlock], heads.kv_head, warp_key % kBlock);
    attend_keys<Shape>(args, heads, token, row, min(n_keys - warp_key, kWarpKeys), warp, shared);
  }
  sync_block();
  // Warps without keys have left nothing.
  const int n_warps = min((n_keys - first_key + kWarpKeys - 1) / kWarpKeys, kWarps);
  if (thread < Shape::kGroup) {
    float largest = shared.largest[0][thread];
    for (int w = 1; w < n_warps; ++w) largest = fmaxf(largest, shared.largest[w][thread]);
    float sum = 0.0f;
    for (int w = 0; w < n_warps; ++w) {
      const float factor = exp_of(shared.largest[w][thread] - largest);
      shared.factors[w][thread] = factor;
      sum = fmaf(shared.sums[w][thread], factor, sum);
    }
    shared.block_largest[thread] = largest;
    shared.block_sums[thread] = sum;
  }
  sync_block();
  const int n_splits = (n_keys + kSplit - 1) / kSplit;
  const int64_t first_head = token * attend.n_heads + heads.first;
  for (int h = 0; h < heads.n; ++h) {
    const int64_t state = (first_head + h) * args.n_splits + split;
    for (int d = thread; d < head_dim; d += kThreads) {
      float sum = 0.0f;
      for (int w = 0; w < n_warps; ++w) {
        sum = fmaf(shared.values[w][h][d], shared.factors[w][h], sum);
      }
      if (n_splits == 1) {
        attend.out[(first_head + h) * head_dim + d] = sum / shared.block_sums[h];
      } else {
        args.states[state * head_dim + d] = sum;
      }
    }
    if (n_splits > 1 && thread == 0) {
      args.sums[2 * state] = shared.block_largest[h];
      args.sums[2 * state + 1] = shared.block_sums[h];
    }
  }
  if (n_splits == 1) return;
  sync_block();
  if (thread == 0) {
    uint32_t* ticket = args.tickets + token * gridDim.y + blockIdx.y;
    shared.is_last = take_ticket(ticket) == static_cast<uint32_t>(n_splits) - 1;
    if (shared.is_last) *ticket = 0;
  }
  sync_block();
  if (!shared.is_last) return;
  for (int h = 0; h < heads.n; ++h) {
    fold_splits<Shape>(args, first_head + h, n_splits, head_dim, shared,
                       attend.out + (first_head + h) * head_dim);
  }
}

template <class Piece, int kLanes, int kPieces, int kGroup>
void launch_splits(const Stream& stream, const Decode& args, int64_t group) {
  const int64_t passes = (group + kGroup - 1) / kGroup;
  const dim3 grid(static_cast<unsigned>(args.attend.tokens.n_tokens),
                  static_cast<unsigned>(args.attend.cache.n_kv_heads * passes),
                  static_cast<unsigned>(args.n_splits));
  launch(stream, attend_split<RowShape<Piece, kLanes, kPieces, kGroup>>, grid, dim3(kThreads), 0,
         args);
}

// head_dim 64 and 128.
template <class Piece, int kLanes>
void launch_exact(const Stream& stream, const Decode& args, int64_t group) {
  if (group == 1) return launch_splits<Piece, kLanes, 1, 1>(stream, args, group);
  if (group == 2) return launch_splits<Piece, kLanes, 1, 2>(stream, args, group);
  if (group <= 4) return launch_splits<Piece, kLanes, 1, 4>(stream, args, group);
  launch_splits<Piece, kLanes, 1, 8>(stream, args, group);
}

template <class Piece, int kPieces>
void launch_pieces(const Stream& stream, const Decode& args, int64_t group) {
  if (group == 1) return launch_splits<Piece, 32, kPieces, 1>(stream, args, group);
  launch_splits<Piece, 32, kPieces, 4>(stream, args, group);
}

template <class Piece>
void launch_any(const Stream& stream, const Decode& args, int64_t group) {
  if (args.attend.cache.head_dim <= 128) return launch_pieces<Piece, 2>(stream, args, group);
  launch_pieces<Piece, 4>(stream, args, group);
}

void launch_of_type(const Stream& stream, const Decode& args) {
  const KvLayerView& cache = args.attend.cache;
  const int64_t group = args.attend.n_heads / cache.n_kv_heads;
  switch (cache.type) {
    case KvType::kF32:
      return launch_any<FloatPair>(stream, args, group);
    case KvType::kF16:
      if (cache.head_dim == 128) return launch_exact<HalfOctet, 16>(stream, args, group);
      if (cache.head_dim == 64) return launch_exact<HalfOctet, 8>(stream, args, group);
      return launch_any<HalfPair>(stream, args, group);
    case KvType::kInt8:
      if (cache.head_dim == 128) return launch_exact<Int8Octet, 16>(stream, args, group);
      if (cache.head_dim == 64) return launch_exact<Int8Octet, 8>(stream, args, group);
      return launch_any<Int8Pair>(stream, args, group);
  }
}

int64_t splits_of(int64_t context) { return (context + kSplit - 1) / kSplit; }

int64_t rows_of(int64_t n_tokens, int64_t n_heads, int64_t context) {
  return std::min(n_tokens, kLaunchTokens) * n_heads * splits_of(context);
}

}  // namespace

int64_t decode_states(int64_t n_tokens, int64_t n_heads, int64_t head_dim, int64_t context) {
  return rows_of(n_tokens, n_heads, context) * (head_dim + 2);
}

int64_t decode_tickets(int64_t n_tokens, int64_t n_heads, int64_t) {
  return std::min(n_tokens, kLaunchTokens) * n_heads;
}

void attend_decode(const Stream& stream, const AttendArgs& args, const DecodeScratch& scratch,
                   int64_t context) {
  const int64_t n_tokens = args.tokens.n_tokens, head_dim = args.cache.head_dim;
  for (int64_t begin = 0; begin < n_tokens; begin += kLaunchTokens) {
    Decode part{args, scratch.states, nullptr, scratch.tickets,
                static_cast<int>(splits_of(context))};
    part.attend.tokens.n_tokens = std::min(n_tokens - begin, kLaunchTokens);
    part.attend.tokens.positions += begin;
    part.attend.tokens.sequence_of_token += begin;
    part.attend.q += begin * args.n_heads * head_dim;
    part.attend.out += begin * args.n_heads * head_dim;
    part.sums =
        part.states + rows_of(part.attend.tokens.n_tokens, args.n_heads, context) * head_dim;
    launch_of_type(stream, part);
  }
}

}  // namespace llama2q::cuda
