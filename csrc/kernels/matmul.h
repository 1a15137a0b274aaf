// y = x W^T over bands of 16 rows: rows in lanes, so no horizontal sum is ever needed.
#pragma once

#include "kernels/args.h"
#include "kernels/math.h"
#include "quant/dense.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace llama2q {

// Tokens whose activations stay in the L2 cache while a run of bands passes over them.
inline constexpr int64_t kTokenBlock = 64;

// One band, kTokens tokens starting at token t0: an exact int32 dot per group, then
// acc = fma(float(dot), w_scale * a_scale, acc), groups ascending (DESIGN.md section 5.2).
template <class V, class Lines, int kTokens>
void quantized_tile(const MatrixView& w, const Lines& lines, const ActivationView& x, int64_t band,
                    int64_t t0, typename V::F (&acc)[kTokens]) {
  const int64_t k = w.n_groups * w.group_size;
  const int64_t lines_per_group = w.group_size / Lines::kColumns;
  const uint8_t* line =
      static_cast<const uint8_t*>(w.codes) + band * w.n_groups * lines_per_group * kLineBytes;
  const uint16_t* w_scales = w.scales + band * w.n_groups * kBandRows;
  const int8_t* codes = x.codes + t0 * k;
  const float* a_scales = x.scales + t0 * w.n_groups;
  const int32_t* corrections = x.corrections + t0 * w.n_groups;
  for (int t = 0; t < kTokens; ++t) acc[t] = V::broadcast(0.0f);
  for (int64_t g = 0; g < w.n_groups; ++g) {
    typename V::Dot dot[kTokens];
    for (int t = 0; t < kTokens; ++t) dot[t] = V::start_dot(corrections[t * w.n_groups + g]);
    for (int64_t j = 0; j < lines_per_group; ++j) {
      V::prefetch(line + 4096);
      lines.template accumulate<kTokens>(line, codes, k, dot);
      line += kLineBytes;
      codes += Lines::kColumns;
    }
    const typename V::F w_scale = V::load_f16(w_scales + g * kBandRows);
    for (int t = 0; t < kTokens; ++t) {
      const typename V::F scale = V::mul(w_scale, V::broadcast(a_scales[t * w.n_groups + g]));
      acc[t] = V::fma(V::to_float(V::finish_dot(dot[t])), scale, acc[t]);
    }
  }
}

// Dense weights: acc = fma(w, x, acc), k ascending.
template <class V, class Dense, int kTokens>
void dense_tile(const MatrixView& w, const ActivationView& x, int64_t band, int64_t t0,
                typename V::F (&acc)[kTokens]) {
  const auto* p = static_cast<const typename Dense::Element*>(w.codes) + band * w.cols * kBandRows;
  const float* row = x.x + t0 * w.cols;
  for (int t = 0; t < kTokens; ++t) acc[t] = V::broadcast(0.0f);
  for (int64_t k = 0; k < w.cols; ++k, p += kBandRows) {
    const typename V::F value = Dense::load(p);
    for (int t = 0; t < kTokens; ++t) {
      acc[t] = V::fma(value, V::broadcast(row[t * w.cols + k]), acc[t]);
    }
  }
}

template <class V, class Tile, int kTokens>
void store_tile(const MatmulArgs& args, const Tile& tile, int64_t band, int64_t t0) {
  typename V::F acc[kTokens];
  const int64_t row = band * kBandRows;
  const int64_t present = args.y_rows - row;
  float* y = args.y + t0 * args.y_stride + row;
  if (args.epilogue == Epilogue::kSwiglu) {
    typename V::F up[kTokens];
    tile.template run<kTokens>(2 * band, t0, acc);
    tile.template run<kTokens>(2 * band + 1, t0, up);
    for (int t = 0; t < kTokens; ++t) {
      V::store_partial(y + t * args.y_stride, swiglu_lanes<V>(acc[t], up[t]), present);
    }
    return;
  }
  tile.template run<kTokens>(band, t0, acc);
  for (int t = 0; t < kTokens; ++t) {
    float* out = y + t * args.y_stride;
    if (args.epilogue == Epilogue::kAdd) acc[t] = V::add(V::load_partial(out, present), acc[t]);
    V::store_partial(out, acc[t], present);
  }
}

// Runs the tokens [t0, end) of one band in tiles of kTokens, then the rest in smaller ones.
template <class V, class Tile, int kTokens>
void band_tokens(const MatmulArgs& args, const Tile& tile, int64_t band, int64_t t0, int64_t end) {
  for (; t0 + kTokens <= end; t0 += kTokens) store_tile<V, Tile, kTokens>(args, tile, band, t0);
  if constexpr (kTokens > 1) {
    if (t0 < end) band_tokens<V, Tile, kTokens / 2>(args, tile, band, t0, end);
  }
}

template <class V, class Lines>
struct QuantizedTile {
  const MatrixView& w;
  const ActivationView& x;
  Lines lines;
  template <int kTokens>
  void run(int64_t band, int64_t t0, typename V::F (&acc)[kTokens]) const {
    quantized_tile<V, Lines, kTokens>(w, lines, x, band, t0, acc);
  }
};

template <class V, class Dense>
struct DenseTile {
  const MatrixView& w;
  const ActivationView& x;
  template <int kTokens>
  void run(int64_t band, int64_t t0, typename V::F (&acc)[kTokens]) const {
    dense_tile<V, Dense, kTokens>(w, x, band, t0, acc);
  }
};

template <class V, class Tile>
void matmul_bands(const MatmulArgs& args, const Tile& tile, int64_t begin, int64_t end) {
  const int64_t n_tokens = args.input.n_tokens;
  for (int64_t t0 = 0; t0 < n_tokens; t0 += kTokenBlock) {
    const int64_t t1 = t0 + kTokenBlock < n_tokens ? t0 + kTokenBlock : n_tokens;
    for (int64_t band = begin; band < end; ++band) {
      band_tokens<V, Tile, V::kTileTokens>(args, tile, band, t0, t1);
    }
  }
}

template <class V>
void matmul(const MatmulArgs& args, int64_t begin, int64_t end) noexcept {
  const MatrixView& w = *args.matrix;
  switch (w.kind) {
    case MatrixKind::kInt4:
      return matmul_bands<V>(args, QuantizedTile<V, Int4Lines<V>>{w, args.input, Int4Lines<V>(w)},
                             begin, end);
    case MatrixKind::kInt8:
      return matmul_bands<V>(args, QuantizedTile<V, Int8Lines<V>>{w, args.input, Int8Lines<V>(w)},
                             begin, end);
    case MatrixKind::kF32:
      return matmul_bands<V>(args, DenseTile<V, DenseF32<V>>{w, args.input}, begin, end);
    case MatrixKind::kF16:
      return matmul_bands<V>(args, DenseTile<V, DenseF16<V>>{w, args.input}, begin, end);
    case MatrixKind::kBf16:
      return matmul_bands<V>(args, DenseTile<V, DenseBf16<V>>{w, args.input}, begin, end);
  }
}

}  // namespace llama2q
