// Attention for a few tokens: split over the positions, query rows of a KV head together.
//
// A block holds one KV head, one split of kSplit positions and up to kQueries query rows: heads of
// the KV head's group, of one token or of several of a sequence that follow each other. Each of its
// warps takes kWarpKeys positions, scores first, then values. Blocks of the same rows leave their
// states in scratch; the last one to arrive folds them. Everything is f32; a row's sums are taken
// in an order that depends on its position alone, not on the rows beside it.
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

static_assert(kDecodeTokens <= 32);  // tokens_of_block()

struct Decode {
  AttendArgs attend;
  float* states;  // f32 [n_tokens, n_heads, n_splits, head_dim], then [.., n_splits, 2]: m and l
  float* sums;
  uint32_t* tickets;  // u32 [n_tokens, n_kv_heads * passes]
  int n_splits;
  int group;        // query heads of a KV head
  int passes;       // over them
  int tile_tokens;  // that a block takes together; 1 if there are several passes
};

// The tokens from this one on that its block takes together; 0 if the block of an earlier one does.
__device__ __forceinline__ int tokens_of_block(const Decode& args, int token, int32_t sequence) {
  if (args.tile_tokens == 1) return 1;
  const int32_t* sequences = args.attend.tokens.sequence_of_token;
  const int last = static_cast<int>(args.attend.tokens.n_tokens) - 1;
  // How many tokens of the sequence stand before, and behind: a neighbour per lane, the nearest
  // one of another sequence.
  const int earlier = token - 1 - lane(), later = token + 1 + lane();
  int before = earlier >= 0 && sequences[max(earlier, 0)] == sequence ? 32 : lane();
  int behind = later <= last && sequences[min(later, last)] == sequence ? 32 : lane();
  for (int mask = 16; mask > 0; mask /= 2) {
    before = min(before, shuffle_xor(before, mask));
    behind = min(behind, shuffle_xor(behind, mask));
  }
  return before % args.tile_tokens == 0 ? min(1 + behind, args.tile_tokens) : 0;
}

// `n_keys`: that the first token sees.
template <class Shape>
__device__ __forceinline__ Queries queries_of(const Decode& args, int token, int n_tokens,
                                              int kv_head, int pass, int n_keys) {
  const int done = pass * Shape::kQueries, heads = min(args.group - done, Shape::kQueries);
  return {.first = token * args.attend.n_heads + kv_head * args.group + done,
          .n_heads = args.attend.n_heads,
          .n = n_tokens * heads,
          .heads = heads,
          .reciprocal = n_tokens == 1 ? 0 : (63 + heads) / heads,
          .n_keys = n_keys};
}

__device__ __forceinline__ int splits_of_keys(int n_keys) { return (n_keys + kSplit - 1) / kSplit; }

// States of a few splits of a row, as one lane holds them: kSide splits of its warp's.
template <class Shape>
struct LaneStates {
  static constexpr int kSide = 8;
  static constexpr int kPairs = (Shape::kMostDim + 63) / 64;  // of columns, 64 apart

  float2 softmax[kSide];  // m and l
  float2 values[kSide][kPairs];

  __device__ __forceinline__ void load(const Decode& args, int64_t row, int first, int n,
                                       int head_dim) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int split = first + j * kWarps;
      const int64_t state = row * args.n_splits + split;
      softmax[j] = split < n ? reinterpret_cast<const float2*>(args.sums)[state]
                             : make_float2(-INFINITY, 0.0f);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int column = 2 * (lane() + 32 * i);
        values[j][i] =
            split < n && column < head_dim
                ? *reinterpret_cast<const float2*>(args.states + state * head_dim + column)
                : make_float2(0.0f, 0.0f);
      }
    }
  }
};

// The largest score of each of the block's rows, over all splits, into shared.block_largest.
template <class Shape>
__device__ __forceinline__ void find_largest(const Decode& args, const Queries& queries,
                                             SharedState<Shape>& shared) {
  for (int i = static_cast<int>(threadIdx.x) / 32; i < queries.n; i += kWarps) {
    const int n = splits_of_keys(queries.keys(i));
    const auto* softmax =
        reinterpret_cast<const float2*>(args.sums) + queries.row(i) * args.n_splits;
    float largest = -INFINITY;
    for (int s = lane(); n > 1 && s < n; s += 32) largest = fmaxf(largest, softmax[s].x);
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    if (lane() == 0) shared.block_largest[i] = largest;
  }
}

// Folds the states of the block's rows that have several, into the result. Warp w takes splits w,
// w + kWarps, ...; the warps' sums are added in ascending order.
template <class Shape>
__device__ __forceinline__ void fold_rows(const Decode& args, const Queries& queries, int head_dim,
                                          SharedState<Shape>& shared) {
  using States = LaneStates<Shape>;
  constexpr int kPairs = States::kPairs;
  constexpr int kRows = Shape::kQueries == kMostQueries ? 2 : 1;  // side by side
  const int warp = static_cast<int>(threadIdx.x) / 32;
  find_largest(args, queries, shared);
  sync_block();
  for (int row = 0; row < queries.n; row += kRows) {
    const int n = splits_of_keys(queries.keys(min(row + kRows, queries.n) - 1));
    float l[kRows] = {};
    float2 acc[kRows][kPairs] = {};
    for (int first = warp; first < n; first += States::kSide * kWarps) {
      States states[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int of_row = row + r < queries.n ? splits_of_keys(queries.keys(row + r)) : 1;
        states[r].load(args, queries.row(row + r), first, of_row == 1 ? 0 : of_row, head_dim);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float largest = shared.block_largest[min(row + r, queries.n - 1)];
#pragma unroll
        for (int j = 0; j < States::kSide; ++j) {
          const float2 softmax = states[r].softmax[j];
          const float factor = softmax.x == -INFINITY ? 0.0f : exp_of(softmax.x - largest);
          l[r] = fmaf(softmax.y, factor, l[r]);
#pragma unroll
          for (int i = 0; i < kPairs; ++i) {
            acc[r][i].x = fmaf(states[r].values[j][i].x, factor, acc[r][i].x);
            acc[r][i].y = fmaf(states[r].values[j][i].y, factor, acc[r][i].y);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r >= queries.n) continue;
      for (int i = 0; i < kPairs; ++i) {
        const int column = 2 * (lane() + 32 * i);
        if (column >= head_dim) continue;
        shared.values[warp][row + r][column] = acc[r][i].x;
        shared.values[warp][row + r][column + 1] = acc[r][i].y;
      }
      if (lane() == 0) shared.sums[warp][row + r] = l[r];
    }
  }
  sync_block();
  for (int i = 0; i < queries.n; ++i) {
    if (queries.keys(i) <= kSplit) continue;
    for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
      float total = shared.values[0][i][d], sum = shared.sums[0][i];
      for (int w = 1; w < kWarps; ++w) {
        total += shared.values[w][i][d];
        sum += shared.sums[w][i];
      }
      args.attend.out[queries.row(i) * head_dim + d] = total / sum + 0.0f;
    }
  }
}

// Warps of the block that have keys of row i.
__device__ __forceinline__ int warps_of_row(const Queries& queries, int i, int first_key) {
  return min((queries.keys(i) - first_key + kWarpKeys - 1) / kWarpKeys, kWarps);
}

// Factors by which the warps are brought to one maximum, by a thread per query row. Warps that have
// no keys of it have left nothing.
template <class Shape>
__device__ __forceinline__ void weigh_warps(int query, int n_warps, SharedState<Shape>& shared) {
  float largest = -INFINITY;
  for (int w = 0; w < kWarps; ++w) {
    if (w < n_warps) largest = fmaxf(largest, shared.largest[w][query]);
  }
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    if (w >= n_warps) continue;
    const float factor = exp_of(shared.largest[w][query] - largest);
    shared.factors[w][query] = factor;
    sum = fmaf(shared.sums[w][query], factor, sum);
  }
  shared.block_largest[query] = largest;
  shared.block_sums[query] = sum;
}

// Adds up the warps' values of row i: the result if the split is the only one, else its state. A
// result of -0 becomes +0: which it is may depend on the keys of rows beside it.
template <class Shape>
__device__ __forceinline__ void store_split(const Decode& args, const Queries& queries, int i,
                                            int n_warps, int head_dim,
                                            const SharedState<Shape>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = queries.row(i), state = row * args.n_splits + blockIdx.z;
  const bool is_only = queries.keys(i) <= kSplit;
  for (int d = thread; d < head_dim; d += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      if (w < n_warps) sum = fmaf(shared.values[w][i][d], shared.factors[w][i], sum);
    }
    if (is_only) {
      args.attend.out[row * head_dim + d] = sum / shared.block_sums[i] + 0.0f;
    } else {
      args.states[state * head_dim + d] = sum;
    }
  }
  if (!is_only && thread == 0) {
    reinterpret_cast<float2*>(args.sums)[state] =
        make_float2(shared.block_largest[i], shared.block_sums[i]);
  }
}

template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kResident) attend_split(const Decode args) {
  __shared__ SharedState<Shape> shared;
  wait_for_previous();
  let_next_start();
  const AttendArgs& attend = args.attend;
  const KvLayerView& cache = attend.cache;
  const int token = static_cast<int>(blockIdx.x);
  const int first_key = static_cast<int>(blockIdx.z) * kSplit;
  const int32_t position = attend.tokens.positions[token];
  const int32_t sequence = attend.tokens.sequence_of_token[token];
  const int n_tokens = tokens_of_block(args, token, sequence);
  const int n_keys = position + n_tokens;  // of the last token
  if (n_tokens == 0 || n_keys <= first_key) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int head_dim = Shape::kExact ? Shape::kMostDim : static_cast<int>(cache.head_dim);
  const int item = static_cast<int>(blockIdx.y);
  const int kv_head = args.passes == 1 ? item : item / args.passes;
  const Queries queries =
      queries_of<Shape>(args, token, n_tokens, kv_head, item - kv_head * args.passes, position + 1);
  const int warp_key = first_key + warp * kWarpKeys;
  if (warp_key < n_keys) {
    const int32_t* table = attend.tokens.block_tables + sequence * attend.tokens.max_blocks;
    const int64_t row = cache_row(cache, table[warp_key / kBlock], kv_head, warp_key % kBlock);
    attend_keys<Shape>(attend, queries, row, warp_key, min(n_keys - warp_key, kWarpKeys), warp,
                       shared);
  }
  sync_block();
  if (thread < queries.n) weigh_warps(thread, warps_of_row(queries, thread, first_key), shared);
  sync_block();
  for (int i = 0; i < queries.n; ++i) {
    const int n_warps = warps_of_row(queries, i, first_key);
    if (n_warps > 0) store_split(args, queries, i, n_warps, head_dim, shared);
  }
  const int n_splits = splits_of_keys(n_keys);
  if (n_splits == 1) return;
  sync_block();
  if (thread == 0) {
    uint32_t* ticket = args.tickets + token * gridDim.y + blockIdx.y;
    shared.is_last = take_ticket(ticket) == static_cast<uint32_t>(n_splits) - 1;
    if (shared.is_last) *ticket = 0;
  }
  sync_block();
  if (shared.is_last) fold_rows(args, queries, head_dim, shared);
}

template <class Piece, int kLanes, int kPieces, int kQueries>
void launch_splits(const Stream& stream, Decode args) {
  args.passes = (args.group + kQueries - 1) / kQueries;
  if (args.passes > 1) args.tile_tokens = 1;
  const dim3 grid(static_cast<unsigned>(args.attend.tokens.n_tokens),
                  static_cast<unsigned>(args.attend.cache.n_kv_heads * args.passes),
                  static_cast<unsigned>(args.n_splits));
  launch(stream, attend_split<RowShape<Piece, kLanes, kPieces, kQueries>>, grid, dim3(kThreads), 0,
         args);
}

// head_dim 64 and 128.
template <class Piece, int kLanes>
void launch_exact(const Stream& stream, Decode args) {
  args.tile_tokens = std::clamp(kMostQueries / args.group, 1, args.tile_tokens);
  const int queries = args.tile_tokens * args.group;
  if (queries == 1) return launch_splits<Piece, kLanes, 1, 1>(stream, args);
  if (queries == 2) return launch_splits<Piece, kLanes, 1, 2>(stream, args);
  if (queries <= 4) return launch_splits<Piece, kLanes, 1, 4>(stream, args);
  launch_splits<Piece, kLanes, 1, kMostQueries>(stream, args);
}

template <class Piece, int kPieces>
void launch_pieces(const Stream& stream, Decode args) {
  args.tile_tokens = std::clamp(4 / args.group, 1, args.tile_tokens);
  if (args.tile_tokens * args.group == 1) return launch_splits<Piece, 32, kPieces, 1>(stream, args);
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

// Tokens that a launch may take.
int64_t launch_tokens(int64_t n_heads, int64_t context) {
  return std::clamp(kDecodeStates / (n_heads * splits_of(context)), int64_t{1}, kDecodeTokens);
}

}  // namespace

void attend_decode(const Stream& stream, const AttendArgs& args, const DecodeScratch& scratch,
                   int64_t context, int64_t run) {
  const int64_t n_tokens = args.tokens.n_tokens, head_dim = args.cache.head_dim;
  const int64_t most = launch_tokens(args.n_heads, context);
  for (int64_t begin = 0; begin < n_tokens; begin += most) {
    Decode part{.attend = args,
                .states = scratch.states,
                .sums = nullptr,
                .tickets = scratch.tickets,
                .n_splits = static_cast<int>(splits_of(context)),
                .group = static_cast<int>(args.n_heads / args.cache.n_kv_heads),
                .passes = 1,
                .tile_tokens = static_cast<int>(std::clamp(run, int64_t{1}, kDecodeTokens))};
    TokenView& tokens = part.attend.tokens;
    tokens.n_tokens = std::min(n_tokens - begin, most);
    tokens.positions += begin;
    tokens.sequence_of_token += begin;
    part.attend.q += begin * args.n_heads * head_dim;
    part.attend.out += begin * args.n_heads * head_dim;
    part.sums = part.states + tokens.n_tokens * args.n_heads * part.n_splits * head_dim;
    launch_of_type(stream, part);
  }
}

}  // namespace llama2q::cuda
