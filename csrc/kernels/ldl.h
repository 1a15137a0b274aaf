// H = L D L^T of a symmetric matrix, L unit lower triangular, a block of columns at a time.
//
// With w[j, i] the element (i, j) of H before it is divided, i >= j:
//   w[j, i] = H[i, j], then fma(-L[j, p], w[p, i], w[j, i]) for p from 0 to j - 1;
//   D[j] = w[j, j], L[i, j] = w[j, i] / D[j].
// One chain per element again, so that the bits do not depend on the size of blocks. Rows of w are
// columns of H: vectors run along them.
#pragma once

#include "kernels/gemm.h"

namespace llama2q {

// The block on the diagonal: w f32 [n, kLdlBlock] holds the upper triangle of n <= kLdlBlock rows
// (what is left of it does not matter). Writes negated[j, i] = -L[i, j] for i > j, of the same
// shape. Returns the first j whose D[j] is not greater than 0 or not finite, or -1.
template <class V>
int64_t ldl_block(float* w, float* negated, int64_t n) noexcept {
  for (int64_t j = 0; j < n; ++j) {
    float* const row = w + j * kLdlBlock;
    for (int64_t i = j / 16 * 16; i < kLdlBlock; i += 16) {
      typename V::F sum = V::load(row + i);
      for (int64_t p = 0; p < j; ++p) {
        const typename V::F factor = V::broadcast(negated[p * kLdlBlock + j]);
        sum = V::fma(factor, V::load(w + p * kLdlBlock + i), sum);
      }
      V::store(row + i, sum);
    }
    const float pivot = row[j];
    if (!(pivot > 0.0f) || !(pivot < __builtin_inff())) return j;
    for (int64_t i = j / 16 * 16; i < kLdlBlock; i += 16) {
      const typename V::F quotient = V::div(V::load(row + i), V::broadcast(pivot));
      V::store(negated + j * kLdlBlock + i, V::mul(V::broadcast(-1.0f), quotient));
    }
  }
  return -1;
}

// Rows [j, j + kRows) of w for the kGemmColumns columns at w.
template <class V, int kRows>
[[gnu::noinline]] void ldl_rows(const float* negated, float* w, int64_t j) {
  constexpr int kParts = kGemmParts<V>;
  typename V::Part acc[kRows][kParts];
  load_rows<V>(w + j * kLdlStrip, kLdlStrip, acc);
  add_products<V>(negated + j, kLdlBlock, w, kLdlStrip, j, acc);
  for (int p = 0; p < kRows; ++p) {
    for (int r = p + 1; r < kRows; ++r) {
      const typename V::Part factor = V::part(negated[(j + p) * kLdlBlock + j + r]);
      for (int i = 0; i < kParts; ++i) acc[r][i] = V::fma_part(factor, acc[p][i], acc[r][i]);
    }
  }
  store_rows<V>(w + j * kLdlStrip, kLdlStrip, acc);
}

// Beside the block: w f32 [n, kLdlStrip] in place, l [n, kLdlStrip] = w / pivots; negated
// [n, kLdlBlock] and pivots [n] are the block's.
template <class V>
void ldl_strip(const float* negated, const float* pivots, int64_t n, float* w, float* l) noexcept {
  static_assert(kLdlStrip % kGemmColumns<V> == 0);
  for (int64_t i = 0; i < kLdlStrip; i += kGemmColumns<V>) {
    int64_t j = 0;
    for (; j + kGemmRows<V> <= n; j += kGemmRows<V>) ldl_rows<V, kGemmRows<V>>(negated, w + i, j);
    for (; j < n; ++j) ldl_rows<V, 1>(negated, w + i, j);
  }
  for (int64_t j = 0; j < n; ++j) {
    const typename V::F pivot = V::broadcast(pivots[j]);
    for (int64_t i = j * kLdlStrip; i < (j + 1) * kLdlStrip; i += 16)
      V::store(l + i, V::div(V::load(w + i), pivot));
  }
}

}  // namespace llama2q
