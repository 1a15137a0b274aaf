// Products of float32 matrices, for calibration: C + A^T B or C - A^T B, where the index that is
// summed over is the first of both.
//
// Per element one chain, c = fma(a[k, i], b[k, j], c) with k ascending, which starts at the C that
// is there; a subtraction negates a. However C and k are cut, the bits are the same. A and B are
// packed into strips as wide as a register tile, kGemmDepth of k at a time: a strip of A stays in
// the L1 cache, B in the L2.
#pragma once

#include "kernels/args.h"

namespace llama2q {

// The register tile: kGemmRows x kGemmColumns accumulators.
template <class V>
inline constexpr int kGemmParts = V::kTileRegisters >= 24 ? 3 : 16 / V::kPartLanes;
template <class V>
inline constexpr int kGemmRows = V::kTileRegisters / kGemmParts<V>;
template <class V>
inline constexpr int64_t kGemmColumns = int64_t{kGemmParts<V>} * V::kPartLanes;

// acc[r, :] = fma(a[k, r], b[k, :], acc[r, :]), k from 0 to depth - 1.
template <class V, int kRows, int kParts>
[[gnu::always_inline]] inline void add_products(const float* a, int64_t a_stride, const float* b,
                                                int64_t b_stride, int64_t depth,
                                                typename V::Part (&acc)[kRows][kParts]) {
  using Part = typename V::Part;
  for (int64_t k = 0; k < depth; ++k) {
    Part right[kParts];
    for (int i = 0; i < kParts; ++i) right[i] = V::load_part(b + i * V::kPartLanes);
    for (int r = 0; r < kRows; ++r) {
      const Part left = V::part(a[r]);
      for (int i = 0; i < kParts; ++i) acc[r][i] = V::fma_part(left, right[i], acc[r][i]);
    }
    a += a_stride;
    b += b_stride;
  }
}

template <class V, int kRows>
[[gnu::always_inline]] inline void load_rows(const float* c, int64_t stride,
                                             typename V::Part (&acc)[kRows][kGemmParts<V>]) {
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kGemmParts<V>; ++i)
      acc[r][i] = V::load_part(c + r * stride + i * V::kPartLanes);
  }
}

template <class V, int kRows>
[[gnu::always_inline]] inline void store_rows(float* c, int64_t stride,
                                              const typename V::Part (&acc)[kRows][kGemmParts<V>]) {
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kGemmParts<V>; ++i)
      V::store_part(c + r * stride + i * V::kPartLanes, acc[r][i]);
  }
}

// One register tile: a [depth, kGemmRows], b [depth, kGemmColumns], packed.
template <class V>
[[gnu::noinline]] void gemm_tile(const float* a, const float* b, int64_t depth, float* c,
                                 int64_t c_stride) {
  typename V::Part acc[kGemmRows<V>][kGemmParts<V>];
  load_rows<V>(c, c_stride, acc);
  add_products<V>(a, kGemmRows<V>, b, kGemmColumns<V>, depth, acc);
  store_rows<V>(c, c_stride, acc);
}

// Columns of a row of C that are computed, from 0 on.
static inline int64_t gemm_row_end(const GemmArgs& args, int64_t row) {
  if (row >= args.m) return 0;
  return args.lower && row + 1 < args.n ? row + 1 : args.n;
}

// A tile of which not all is computed, by way of a whole one. i, j: its place in C.
template <class V>
[[gnu::noinline]] void gemm_partial_tile(const GemmArgs& args, const float* a, const float* b,
                                         int64_t depth, int64_t i, int64_t j) {
  constexpr int64_t kColumns = kGemmColumns<V>;
  alignas(64) float whole[kGemmRows<V> * kColumns] = {};
  float* const c = args.c + i * args.c_stride + j;
  for (int64_t r = 0; r < kGemmRows<V>; ++r) {
    const int64_t present = gemm_row_end(args, i + r) - j;
    for (int64_t q = 0; q < kColumns && q < present; ++q)
      whole[r * kColumns + q] = c[r * args.c_stride + q];
  }
  gemm_tile<V>(a, b, depth, whole, kColumns);
  for (int64_t r = 0; r < kGemmRows<V>; ++r) {
    const int64_t present = gemm_row_end(args, i + r) - j;
    for (int64_t q = 0; q < kColumns && q < present; ++q)
      c[r * args.c_stride + q] = whole[r * kColumns + q];
  }
}

// Columns [0, n) of `depth` rows -> [ceil(n / kWidth), depth, kWidth], absent columns 0.
template <class V, int64_t kWidth, bool kNegate>
void pack_strips(const float* from, int64_t stride, int64_t depth, int64_t n, float* to) {
  for (int64_t k = 0; k < depth; ++k) {
    float* out = to + k * kWidth;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
      for (int64_t q = 0; q < kWidth; ++q) out[q] = kNegate ? -from[i + q] : from[i + q];
      out += depth * kWidth;
    }
    if (i < n) {
      for (int64_t q = 0; q < kWidth; ++q)
        out[q] = i + q >= n ? 0.0f : kNegate ? -from[i + q] : from[i + q];
    }
    from += stride;
  }
}

// scratch: f32 [kGemmScratch], aligned to 64 bytes.
template <class V>
void gemm(const GemmArgs& args, float* scratch) noexcept {
  constexpr int64_t kRows = kGemmRows<V>, kColumns = kGemmColumns<V>;
  static_assert(kGemmTile % kRows == 0 && kGemmTile % kColumns == 0);
  float* const left = scratch;
  float* const right = scratch + kGemmDepth * kGemmTile;
  for (int64_t k = 0; k < args.depth; k += kGemmDepth) {
    const int64_t depth = args.depth - k < kGemmDepth ? args.depth - k : kGemmDepth;
    const float* a = args.a + k * args.a_stride;
    if (args.subtract) {
      pack_strips<V, kRows, true>(a, args.a_stride, depth, args.m, left);
    } else {
      pack_strips<V, kRows, false>(a, args.a_stride, depth, args.m, left);
    }
    pack_strips<V, kColumns, false>(args.b + k * args.b_stride, args.b_stride, depth, args.n,
                                    right);
    for (int64_t i = 0; i < args.m; i += kRows) {
      const int64_t last = i + kRows < args.m ? i + kRows - 1 : args.m - 1;
      const int64_t end = gemm_row_end(args, last);
      for (int64_t j = 0; j < end; j += kColumns) {
        const bool whole = i + kRows <= args.m && j + kColumns <= gemm_row_end(args, i);
        const float* const a_strip = left + i * depth;
        const float* const b_strip = right + j * depth;
        if (whole) {
          gemm_tile<V>(a_strip, b_strip, depth, args.c + i * args.c_stride + j, args.c_stride);
        } else {
          gemm_partial_tile<V>(args, a_strip, b_strip, depth, i, j);
        }
      }
    }
  }
}

}  // namespace llama2q
