// Attention for a few tokens: split over the positions, all query heads of a KV head together.
//
// A block holds one token, one KV head (with up to kGroup of its query heads) and one split of
// kSplit positions: each of its warps kWarpKeys of them, scores first, then values. Blocks of a
// token and head leave their states in scratch; the last one to arrive folds them. Everything is
// f32; which sums are taken in which order depends on the position alone.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/decode_split.h"
#include "cuda/intrinsics.h"
#include "cuda/kv_rows.h"
#include "cuda/math.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = kDecodeThreads;
constexpr int kWarps = kDecodeWarps;
constexpr int kBlock = static_cast<int>(kBlockSize);

// Tokens of a launch: bounds the scratch.
constexpr int64_t kLaunchTokens = 16;

struct Decode {
  AttendArgs attend;
  float* states;  // f32 [n_tokens, n_heads, n_splits, head_dim], then [.., n_splits, 2]: m and l
  float* sums;
  uint32_t* tickets;  // u32 [n_tokens, n_kv_heads * passes]
  int n_splits;
  int group;   // query heads of a KV head
  int passes;  // over them
};

// The query heads of a block, at most kGroup.
struct Heads {
  int first, n;
  int kv_head;
};

template <int kGroup>
__device__ __forceinline__ Heads heads_of(const Decode& args) {
  const int item = static_cast<int>(blockIdx.y);
  const int kv_head = args.passes == 1 ? item : item / args.passes;
  const int done = (item - kv_head * args.passes) * kGroup;
  return {kv_head * args.group + done, min(args.group - done, kGroup), kv_head};
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
      const float2 value = *reinterpret_cast<const float2*>(states + s * head_dim + column);
      acc[i].x = fmaf(value.x, factor, acc[i].x);
      acc[i].y = fmaf(value.y, factor, acc[i].y);
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

// Factors by which a block's warps are brought to one maximum, by a thread per head. Warps from
// n_warps on had no keys and have left nothing.
template <class Shape>
__device__ __forceinline__ void weigh_warps(int head, int n_warps, SharedState<Shape>& shared) {
  float largest = shared.largest[0][head];
  for (int w = 1; w < kWarps; ++w) {
    if (w < n_warps) largest = fmaxf(largest, shared.largest[w][head]);
  }
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    if (w >= n_warps) continue;
    const float factor = exp_of(shared.largest[w][head] - largest);
    shared.factors[w][head] = factor;
    sum = fmaf(shared.sums[w][head], factor, sum);
  }
  shared.block_largest[head] = largest;
  shared.block_sums[head] = sum;
}

// Adds up the warps' values: the result if the split is the only one, else its state.
template <class Shape>
__device__ __forceinline__ void store_split(const Decode& args, int64_t head, int h, int n_warps,
                                            bool is_only, int head_dim,
                                            const SharedState<Shape>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t state = head * args.n_splits + blockIdx.z;
  for (int d = thread; d < head_dim; d += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      if (w < n_warps) sum = fmaf(shared.values[w][h][d], shared.factors[w][h], sum);
    }
    if (is_only) {
      args.attend.out[head * head_dim + d] = sum / shared.block_sums[h];
    } else {
      args.states[state * head_dim + d] = sum;
    }
  }
  if (!is_only && thread == 0) {
    reinterpret_cast<float2*>(args.sums)[state] =
        make_float2(shared.block_largest[h], shared.block_sums[h]);
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
  const int first_key = static_cast<int>(blockIdx.z) * kSplit;
  const int n_keys = attend.tokens.positions[token] + 1;
  const int32_t sequence = attend.tokens.sequence_of_token[token];
  if (n_keys <= first_key) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int head_dim = Shape::kExact ? Shape::kMostDim : static_cast<int>(cache.head_dim);
  const Heads heads = heads_of<Shape::kGroup>(args);
  const int64_t first_head = token * attend.n_heads + heads.first;
  const int warp_key = first_key + warp * kWarpKeys;
  if (warp_key < n_keys) {
    const int32_t* table = attend.tokens.block_tables + sequence * attend.tokens.max_blocks;
    const int64_t row =
        cache_row(cache, table[warp_key / kBlock], heads.kv_head, warp_key % kBlock);
    attend_keys<Shape>(attend, first_head, heads.n, row, min(n_keys - warp_key, kWarpKeys), warp,
                       shared);
  }
  sync_block();
  const int n_warps = min((n_keys - first_key + kWarpKeys - 1) / kWarpKeys, kWarps);
  if (thread < Shape::kGroup) weigh_warps(thread, n_warps, shared);
  sync_block();
  const int n_splits = (n_keys + kSplit - 1) / kSplit;
  for (int h = 0; h < heads.n; ++h) {
    store_split(args, first_head + h, h, n_warps, n_splits == 1, head_dim, shared);
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
    fold_splits(args, first_head + h, n_splits, head_dim, shared,
                attend.out + (first_head + h) * head_dim);
  }
}

template <class Piece, int kLanes, int kPieces, int kGroup>
void launch_splits(const Stream& stream, Decode args) {
  args.passes = (args.group + kGroup - 1) / kGroup;
  const dim3 grid(static_cast<unsigned>(args.attend.tokens.n_tokens),
                  static_cast<unsigned>(args.attend.cache.n_kv_heads * args.passes),
                  static_cast<unsigned>(args.n_splits));
  launch(stream, attend_split<RowShape<Piece, kLanes, kPieces, kGroup>>, grid, dim3(kThreads), 0,
         args);
}

// head_dim 64 and 128.
template <class Piece, int kLanes>
void launch_exact(const Stream& stream, const Decode& args) {
  if (args.group == 1) return launch_splits<Piece, kLanes, 1, 1>(stream, args);
  if (args.group == 2) return launch_splits<Piece, kLanes, 1, 2>(stream, args);
  if (args.group <= 4) return launch_splits<Piece, kLanes, 1, 4>(stream, args);
  launch_splits<Piece, kLanes, 1, 8>(stream, args);
}

template <class Piece, int kPieces>
void launch_pieces(const Stream& stream, const Decode& args) {
  if (args.group == 1) return launch_splits<Piece, 32, kPieces, 1>(stream, args);
  launch_splits<Piece, 32, kPieces, 4>(stream, args);
}

template <class Piece>
void launch_any(const Stream& stream, const Decode& args) {
  if (args.attend.cache.head_dim <= 128) return launch_pieces<Piece, 2>(stream, args);
  launch_pieces<Piece, 4>(stream, args);
}

void launch_of_type(const Stream& stream, const Decode& args) {
  const int64_t head_dim = args.attend.cache.head_dim;
  switch (args.attend.cache.type) {
    case KvType::kF32:
      return launch_any<FloatPair>(stream, args);
    case KvType::kF16:
      if (head_dim == 128) return launch_exact<HalfOctet, 16>(stream, args);
      if (head_dim == 64) return launch_exact<HalfOctet, 8>(stream, args);
      return launch_any<HalfPair>(stream, args);
    case KvType::kInt8:
      if (head_dim == 128) return launch_exact<Int8Octet, 16>(stream, args);
      if (head_dim == 64) return launch_exact<Int8Octet, 8>(stream, args);
      return launch_any<Int8Pair>(stream, args);
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
    Decode part{.attend = args,
                .states = scratch.states,
                .sums = nullptr,
                .tickets = scratch.tickets,
                .n_splits = static_cast<int>(splits_of(context)),
                .group = static_cast<int>(args.n_heads / args.cache.n_kv_heads),
                .passes = 1};
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
