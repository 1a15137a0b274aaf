// A split of attend_decode(), in device code: scores and values of the keys of one warp.
#pragma once

#include "cuda/attention.h"
#include "cuda/decode_rows.h"
#include "cuda/intrinsics.h"
#include "cuda/math.h"

namespace llama2q::cuda {

inline constexpr int kSplit = static_cast<int>(kDecodeSplit);
inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeWarps = kDecodeThreads / 32;
inline constexpr int kWarpKeys = kSplit / kDecodeWarps;
static_assert(kWarpKeys == 32);         // the score of a key per lane
inline constexpr int kMostQueries = 8;  // query rows of a block

// The query rows of a block: heads of one KV head, of one token or of several that follow each
// other.
struct Queries {
  int64_t first;    // the first one's index among the rows of q and out
  int64_t n_heads;  // rows of a token there
  int n;            // rows of the block
  int heads;        // of each token
  int reciprocal;   // 64 / heads, rounded up: i * reciprocal / 64 = i / heads for i < 8; one token:
                    // 0
  int n_keys;       // that the first token sees; each further one sees one more

  __device__ __forceinline__ int token(int i) const { return i * reciprocal / 64; }
  __device__ __forceinline__ int64_t row(int i) const {
    return first + token(i) * n_heads + (i - token(i) * heads);
  }
  __device__ __forceinline__ int keys(int i) const { return n_keys + token(i); }
};

template <class Shape>
struct SharedState {
  float weights[kDecodeWarps][kWarpKeys][Shape::kQueries];       // exp(s - m) [* v_scale]
  float values[kDecodeWarps][Shape::kQueries][Shape::kMostDim];  // sums of weight * v
  float largest[kDecodeWarps][Shape::kQueries], sums[kDecodeWarps][Shape::kQueries];
  float factors[kDecodeWarps][Shape::kQueries];
  float block_largest[Shape::kQueries], block_sums[Shape::kQueries];
  bool is_last;
};

// The rows that a lane holds a part of: of n_rows rows, the first of step 0.
template <class Shape>
struct LaneRows {
  const typename Shape::Element* at;
  int n;  // rows from there on
  int head_dim;

  __device__ __forceinline__ LaneRows(const typename Shape::Element* rows, int n_rows, int dim)
      : at(rows + lane() / Shape::kLanes * dim + Shape::column(0)),
        n(n_rows - lane() / Shape::kLanes),
        head_dim(dim) {}

  // A piece of the row of step s of a batch; zeros beyond the last row or column.
  __device__ __forceinline__ typename Shape::Raw load(int batch, int s, int piece) const {
    const int row = (batch * Shape::kBatch + s) * Shape::kRows;
    if (row >= n) return Shape::Piece::absent();
    if (!Shape::kExact && Shape::column(piece) >= head_dim) return Shape::Piece::absent();
    return *reinterpret_cast<const typename Shape::Raw*>(at + row * head_dim +
                                                         piece * Shape::kLanes * Shape::kWidth);
  }
};

// Scores of a warp's keys, of key Shape::row_of_sum() in each lane, not yet scaled.
template <class Shape>
__device__ __forceinline__ void score_keys(const typename Shape::Element* keys, int n_keys,
                                           int head_dim, const float* q, const Queries& queries,
                                           float (&scores)[Shape::kQueries]) {
  const LaneRows<Shape> rows(keys, n_keys, head_dim);
  float of_lane[Shape::kQueries][Shape::kColumns];
  for (int h = 0; h < Shape::kQueries; ++h) {
    for (int p = 0; p < Shape::kPieces; ++p) {
      const int column = Shape::column(p);
      const bool present = h < queries.n && (Shape::kExact || column < head_dim);
      const float* from = q + queries.row(h) * head_dim + column;
      for (int i = 0; i < Shape::kWidth; i += 2) {
        const float2 pair =
            present ? *reinterpret_cast<const float2*>(from + i) : make_float2(0.0f, 0.0f);
        of_lane[h][p * Shape::kWidth + i] = pair.x;
        of_lane[h][p * Shape::kWidth + i + 1] = pair.y;
      }
    }
  }
#pragma unroll(Shape::kUnrolled)
  for (int batch = 0; batch < Shape::kBatches; ++batch) {
    typename Shape::Raw raw[Shape::kBatch][Shape::kPieces];
    for (int s = 0; s < Shape::kBatch; ++s) {
      for (int p = 0; p < Shape::kPieces; ++p) {
        raw[s][p] = rows.load(batch, s, p);
      }
    }
    float dots[Shape::kQueries][Shape::kBatch];
    for (int s = 0; s < Shape::kBatch; ++s) {
      float k[Shape::kColumns];
      for (int p = 0; p < Shape::kPieces; ++p) {
        Shape::Piece::widen(raw[s][p], k + p * Shape::kWidth);
      }
      for (int h = 0; h < Shape::kQueries; ++h) {
        float dot = of_lane[h][0] * k[0];
        for (int i = 1; i < Shape::kColumns; ++i) dot = fmaf(of_lane[h][i], k[i], dot);
        dots[h][s] = dot;
      }
    }
    const bool mine = lane() % Shape::kBatches == batch;
    for (int h = 0; h < Shape::kQueries; ++h) {
      fold<Shape::kBatch>(dots[h], Shape::kLanes / 2);
      float dot = dots[h][0];
      for (int mask = Shape::kBatches / 2; mask > 0; mask /= 2) dot += shuffle_xor(dot, mask);
      scores[h] = mine ? dot : scores[h];
    }
  }
}

// Sums of weight * value over a warp's keys, into shared.values[warp].
template <class Shape>
__device__ __forceinline__ void add_values(const typename Shape::Element* values, int n_keys,
                                           int head_dim, int warp, SharedState<Shape>& shared) {
  const LaneRows<Shape> rows(values, n_keys, head_dim);
  float sums[Shape::kQueries][Shape::kColumns];
  for (int h = 0; h < Shape::kQueries; ++h) {
    for (int i = 0; i < Shape::kColumns; ++i) sums[h][i] = 0.0f;
  }
#pragma unroll(Shape::kUnrolled)
  for (int batch = 0; batch < Shape::kBatches; ++batch) {
    typename Shape::Raw raw[Shape::kBatch][Shape::kPieces];
    for (int s = 0; s < Shape::kBatch; ++s) {
      for (int p = 0; p < Shape::kPieces; ++p) {
        raw[s][p] = rows.load(batch, s, p);
      }
    }
    for (int s = 0; s < Shape::kBatch; ++s) {
      float v[Shape::kColumns];
      for (int p = 0; p < Shape::kPieces; ++p) {
        Shape::Piece::widen(raw[s][p], v + p * Shape::kWidth);
      }
      for (int h = 0; h < Shape::kQueries; ++h) {
        const float weight = shared.weights[warp][Shape::row(batch, s)][h];
        for (int i = 0; i < Shape::kColumns; ++i) sums[h][i] = fmaf(weight, v[i], sums[h][i]);
      }
    }
  }
  // Lanes that hold the same columns of other rows: their sums are dealt out by columns.
  constexpr int kLeft = Shape::kColumns / Shape::kRows;
  static_assert(kLeft >= 1 && (Shape::kRows == 1 || Shape::kPieces == 1));
  const int sum_of = lane() / Shape::kLanes;
  for (int h = 0; h < Shape::kQueries; ++h) {
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

// A warp's part of a split: n_keys keys, the first at `position` and in this row of the cache.
template <class Shape>
__device__ __forceinline__ void attend_keys(const AttendArgs& args, const Queries& queries,
                                            int64_t row, int position, int n_keys, int warp,
                                            SharedState<Shape>& shared) {
  using Element = typename Shape::Element;
  const KvLayerView& cache = args.cache;
  const int head_dim = Shape::kExact ? Shape::kMostDim : static_cast<int>(cache.head_dim);
  float scores[Shape::kQueries] = {};
  score_keys<Shape>(static_cast<const Element*>(cache.k) + row * head_dim, n_keys, head_dim, args.q,
                    queries, scores);
  const int key = Shape::row_of_sum();
  float scale = args.scale, v_scale = 1.0f;
  if (Shape::kScaled && key < n_keys) {
    scale = half_to_float(cache.k_scales[row + key]) * scale;
    v_scale = half_to_float(cache.v_scales[row + key]);
  }
  for (int h = 0; h < Shape::kQueries; ++h) {
    // A row that sees no key of the warp: largest = -inf, weights 0.
    const bool sees = position + key < queries.keys(h);
    const float score = sees ? scores[h] * scale : -INFINITY;
    float largest = score;
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    const float weight = sees ? exp_of(score - largest) : 0.0f;
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

}  // namespace llama2q::cuda
