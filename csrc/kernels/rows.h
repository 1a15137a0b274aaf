// Kernels over one row: activation quantization, RMSNorm, RoPE, embedding.
#pragma once

#include "kernels/args.h"
#include "kernels/math.h"
#include "kernels/matmul_panel.h"
#include "quant/dense.h"

namespace llama2q {

// Spreads 16 codes of a row, the columns from `column` on, over its tile.
template <class V>
void store_codes(const int8_t* codes, int64_t column, const TileRow& out) {
  for (int64_t quad = 0; quad < 4; ++quad) {
    const int8_t* four = codes + 4 * quad;
    const int64_t at = column + 4 * quad, unit = at / kUnitColumns<V>, line = at / 4;
    __builtin_memcpy(
        out.codes + (unit * out.width + out.token) * kUnitColumns<V> + at % kUnitColumns<V>, four,
        4);
    if (out.wide_codes == nullptr) continue;
    for (int64_t odd = 0; odd < 2; ++odd) {
      int16_t* pair = out.wide_codes + ((2 * line + odd) * out.width + out.token) * 2;
      pair[0] = four[odd];
      pair[1] = four[odd + 2];
    }
  }
}

// DESIGN.md section 5.1. Returns whether the row is finite. Columns beyond cols get code 0.
template <class V>
bool quantize_row(const float* x, int64_t cols, int64_t group_size, const TileRow& out) noexcept {
  bool finite = true;
  for (int64_t begin = 0, g = 0; begin < cols; begin += group_size, ++g) {
    const int64_t present = cols - begin < group_size ? cols - begin : group_size;
    const uint32_t amax_bits = magnitude_bits<V>(x + begin, present);
    finite = finite && amax_bits < 0x7f800000u;
    const bool zero = amax_bits < 0x0d800000u || amax_bits >= 0x7f800000u;  // below 2^-100
    float amax;
    __builtin_memcpy(&amax, &amax_bits, sizeof amax);
    const float inverse = zero ? 0.0f : 127.0f / amax;
    typename V::I sum = V::zero_int();
    for (int64_t i = 0; i < group_size; i += 16) {
      const typename V::F value =
          zero ? V::broadcast(0.0f) : V::load_partial(x + begin + i, present - i);
      const typename V::I q = V::to_int(V::mul(value, V::broadcast(inverse)));
      alignas(16) int8_t codes[16];
      V::store_int8(codes, q);
      store_codes<V>(codes, begin + i, out);
      sum = V::add_int(sum, q);
    }
    out.scales[g * out.width + out.token] = zero ? 0.0f : amax / 127.0f;
    out.corrections[g * out.width + out.token] = -128 * V::sum_lanes(sum);
  }
  return finite;
}

// r = 1 / sqrt(tree16(fma(x, x)) / dim + eps); y = (x * r) * weight.
template <class V>
void rms_norm(const float* x, const float* weight, int64_t dim, float eps, float* y) noexcept {
  typename V::F squares = V::broadcast(0.0f);
  for (int64_t i = 0; i < dim; i += 16) {
    const typename V::F value = V::load_partial(x + i, dim - i);
    squares = V::fma(value, value, squares);
  }
  const float mean = V::tree16(squares) / static_cast<float>(dim);
  const typename V::F r = V::broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < dim; i += 16) {
    const typename V::F scaled = V::mul(V::load_partial(x + i, dim - i), r);
    V::store_partial(y + i, V::mul(scaled, V::load_partial(weight + i, dim - i)), dim - i);
  }
}

// Meta's interleaved pairs: y0 = fma(x0, c, -(x1 * s)), y1 = fma(x0, s, x1 * c).
template <class V>
void rope(float* x, const float* cos, const float* sin, int64_t n_heads,
          int64_t head_dim) noexcept {
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t n = head_dim - d;
    float of_x0[16] = {}, of_x1[16] = {};
    for (int64_t i = 0; i < 16 && i < n; i += 2) {
      const float c = cos[(d + i) / 2], s = sin[(d + i) / 2];
      of_x0[i] = c;
      of_x0[i + 1] = s;
      of_x1[i] = -s;
      of_x1[i + 1] = c;
    }
    const typename V::F factor0 = V::load(of_x0), factor1 = V::load(of_x1);
    for (int64_t h = 0; h < n_heads; ++h) {
      float* pairs = x + h * head_dim + d;
      const typename V::F value = V::load_partial(pairs, n);
      const typename V::F x1_terms = V::mul(V::repeat_odd(value), factor1);
      V::store_partial(pairs, V::fma(V::repeat_even(value), factor0, x1_terms), n);
    }
  }
}

template <class V, class Dense>
void embed_dense(const void* table, int64_t id, int64_t cols, float* x) {
  const auto* row = static_cast<const typename Dense::Element*>(table) + id * cols;
  for (int64_t i = 0; i < cols; i += 16) {
    V::store_partial(x + i, Dense::load_partial(row + i, cols - i), cols - i);
  }
}

// int8: x = code * scale, one rounding.
template <class V>
void embed(const EmbeddingView& table, int64_t id, float* x) noexcept {
  switch (table.kind) {
    case MatrixKind::kF32:
      return embed_dense<V, DenseF32<V>>(table.codes, id, table.cols, x);
    case MatrixKind::kF16:
      return embed_dense<V, DenseF16<V>>(table.codes, id, table.cols, x);
    case MatrixKind::kBf16:
      return embed_dense<V, DenseBf16<V>>(table.codes, id, table.cols, x);
    default:
      break;
  }
  const int8_t* row = static_cast<const int8_t*>(table.codes) + id * table.cols;
  const uint16_t* scales = table.scales + id * table.n_groups;
  for (int64_t i = 0; i < table.cols; i += 16) {  // group sizes are multiples of 16
    const typename V::F scale = V::broadcast(V::widen_f16(scales[i / table.group_size]));
    const typename V::F code = V::load_int8_partial(row + i, table.cols - i);
    V::store_partial(x + i, V::mul(code, scale), table.cols - i);
  }
}

}  // namespace llama2q
