// y = x W^T over bands of 16 rows: rows in lanes, so no horizontal sum is ever needed.
//
// Quantized weights: an exact int32 dot per group, then acc = fma(float(dot), w_scale * a_scale,
// acc), groups ascending (DESIGN.md section 5.2); few tokens stream the codes, many pass over
// panels. Dense weights: acc = fma(w, x, acc), k ascending.
#pragma once

#include "kernels/args.h"
#include "kernels/math.h"
#include "kernels/matmul_panel.h"
#include "quant/dense.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace llama2q {

// Writes 16 outputs of one token; of them `present` exist. up: the second band of a SwiGLU pair.
template <class V>
void store_outputs(const MatmulArgs& args, int64_t token, int64_t row, typename V::F acc,
                   typename V::F up) {
  float* y = args.y + token * args.y_stride + row;
  const int64_t present = args.y_rows - row;
  if (args.epilogue == Epilogue::kSwiglu) acc = swiglu_lanes<V>(acc, up);
  if (args.epilogue == Epilogue::kAdd) acc = V::add(V::load_partial(y, present), acc);
  V::store_partial(y, acc, present);
}

// A tile of kTokens tokens, the first of them t0, and one band, straight from the file's lines.
template <class V, class Lines, int kTokens>
void stream_band(const MatrixView& w, const Lines& lines, const ActivationView& x, int64_t band,
                 int64_t t0, typename V::F (&acc)[kTokens]) {
  static_assert(kTokens == 1 || kUnitColumns<V> == 4);
  const int64_t lines_per_group = w.group_size / Lines::kColumns;
  const uint8_t* line =
      static_cast<const uint8_t*>(w.codes) + band * w.n_groups * lines_per_group * kLineBytes;
  const uint16_t* w_scales = w.scales + band * w.n_groups * kBandRows;
  const int8_t* codes = x.codes + t0 * w.n_groups * w.group_size;
  const float* scales = x.scales + t0 * w.n_groups;
  const int32_t* corrections = x.corrections + t0 * w.n_groups;
  for (int t = 0; t < kTokens; ++t) acc[t] = V::broadcast(0.0f);
  for (int64_t g = 0; g < w.n_groups; ++g) {
    typename V::Dot dots[kTokens];
    for (int t = 0; t < kTokens; ++t) dots[t] = V::start_dot(corrections[g * kTokens + t]);
    for (int64_t j = 0; j < lines_per_group; ++j) {
      V::prefetch(line + 4096);
      lines.accumulate(line, codes, dots);
      line += kLineBytes;
      codes += Lines::kColumns * kTokens;
    }
    const typename V::F w_scale = V::load_f16(w_scales + g * kBandRows);
    for (int t = 0; t < kTokens; ++t) {
      const typename V::F scale = V::mul(w_scale, V::broadcast(scales[g * kTokens + t]));
      acc[t] = V::fma(V::to_float(V::finish_dot(dots[t])), scale, acc[t]);
    }
  }
}

// The outputs of one band, or of a SwiGLU pair, for the tile of `width` tokens.
template <class V, class Lines, int kTokens>
void stream_tile(const MatmulArgs& args, const Lines& lines, int64_t band, int64_t t0,
                 int64_t width) {
  if (width < kTokens) {
    if constexpr (kTokens > 1) stream_tile<V, Lines, kTokens - 1>(args, lines, band, t0, width);
    return;
  }
  const MatrixView& w = *args.matrix;
  typename V::F acc[kTokens], up[kTokens];
  if (args.epilogue == Epilogue::kSwiglu) {
    stream_band<V, Lines, kTokens>(w, lines, args.input, 2 * band, t0, acc);
    stream_band<V, Lines, kTokens>(w, lines, args.input, 2 * band + 1, t0, up);
    for (int t = 0; t < kTokens; ++t) {
      store_outputs<V>(args, t0 + t, band * kBandRows, acc[t], up[t]);
    }
  } else {
    stream_band<V, Lines, kTokens>(w, lines, args.input, band, t0, acc);
    for (int t = 0; t < kTokens; ++t) {
      store_outputs<V>(args, t0 + t, band * kBandRows, acc[t], acc[t]);
    }
  }
}

// Each band comes from memory once; the second tile finds it in the L2 cache.
template <class V, class Lines>
void stream_bands(const MatmulArgs& args, int64_t begin, int64_t end) {
  const Lines lines(V::load_grid(args.matrix->grid));
  const int64_t n_tokens = args.input.n_tokens;
  const int64_t tile = stream_width(n_tokens, V::kStreamTokens);
  for (int64_t t0 = 0; t0 < n_tokens; t0 += tile) {
    for (int64_t band = begin; band < end; ++band) {
      const int64_t width = t0 + tile < n_tokens ? tile : n_tokens - t0;
      stream_tile<V, Lines, V::kStreamTokens>(args, lines, band, t0, width);
    }
  }
}

template <class V, class P, class Lines>
void panel_bands(const MatmulArgs& args, int64_t begin, int64_t end, float* scratch) {
  const bool swiglu = args.epilogue == Epilogue::kSwiglu;
  const int64_t n_tokens = args.input.n_tokens;
  for (int64_t t0 = 0; t0 < n_tokens; t0 += kPanelTokenBlock) {
    const int64_t t1 = t0 + kPanelTokenBlock < n_tokens ? t0 + kPanelTokenBlock : n_tokens;
    PanelProduct<V, P, Lines> product(*args.matrix, args.input, t0, t1, scratch);
    for (int64_t band = begin; band < end; band += swiglu ? 1 : 2) {
      const int64_t count = swiglu || band + 2 <= end ? 2 : 1;
      product.run(swiglu ? 2 * band : band, count);
      for (int64_t t = t0; t < t1; ++t) {
        const typename V::F first = V::load(product.sums_of(0) + (t - t0) * kBandRows);
        const typename V::F second =
            count == 2 ? V::load(product.sums_of(1) + (t - t0) * kBandRows) : first;
        store_outputs<V>(args, t, band * kBandRows, first, second);
        if (!swiglu && count == 2) {
          store_outputs<V>(args, t, (band + 1) * kBandRows, second, second);
        }
      }
    }
  }
}

template <class V, class Dense, int kTokens>
void dense_tile(const MatmulArgs& args, int64_t band, int64_t t0, typename V::F (&acc)[kTokens]) {
  const int64_t cols = args.matrix->cols;
  const auto* p =
      static_cast<const typename Dense::Element*>(args.matrix->codes) + band * cols * kBandRows;
  const float* row = args.input.x + t0 * cols;
  for (int t = 0; t < kTokens; ++t) acc[t] = V::broadcast(0.0f);
  for (int64_t k = 0; k < cols; ++k, p += kBandRows) {
    const typename V::F value = Dense::load(p);
    for (int t = 0; t < kTokens; ++t) {
      acc[t] = V::fma(value, V::broadcast(row[t * cols + k]), acc[t]);
    }
  }
}

// The tokens [t0, end) of one band in tiles of kTokens, the rest in smaller ones.
template <class V, class Dense, int kTokens>
void dense_band(const MatmulArgs& args, int64_t band, int64_t t0, int64_t end) {
  for (; t0 + kTokens <= end; t0 += kTokens) {
    typename V::F acc[kTokens], up[kTokens];
    if (args.epilogue == Epilogue::kSwiglu) {
      dense_tile<V, Dense, kTokens>(args, 2 * band, t0, acc);
      dense_tile<V, Dense, kTokens>(args, 2 * band + 1, t0, up);
      for (int t = 0; t < kTokens; ++t) {
        store_outputs<V>(args, t0 + t, band * kBandRows, acc[t], up[t]);
      }
    } else {
      dense_tile<V, Dense, kTokens>(args, band, t0, acc);
      for (int t = 0; t < kTokens; ++t) {
        store_outputs<V>(args, t0 + t, band * kBandRows, acc[t], acc[t]);
      }
    }
  }
  if constexpr (kTokens > 1) {
    if (t0 < end) dense_band<V, Dense, kTokens / 2>(args, band, t0, end);
  }
}

template <class V, class Dense>
void dense_bands(const MatmulArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kTokenBlock = 64;  // whose activations stay in the L2 cache
  const int64_t n_tokens = args.input.n_tokens;
  for (int64_t t0 = 0; t0 < n_tokens; t0 += kTokenBlock) {
    const int64_t t1 = t0 + kTokenBlock < n_tokens ? t0 + kTokenBlock : n_tokens;
    for (int64_t band = begin; band < end; ++band) {
      dense_band<V, Dense, V::kDenseTokens>(args, band, t0, t1);
    }
  }
}

// Calls action(panel): V's own panel for the uniform grid where it has one.
template <class V, class Action>
void with_int4_panel(const MatrixView& w, Action action) {
  if constexpr (requires { typename V::UniformPanel; }) {
    bool uniform = true;
    for (int i = 0; i < 16; ++i) uniform = uniform && w.grid[i] == i - 8;
    if (uniform) return action(typename V::UniformPanel());
  }
  action(typename V::Panel());
}

template <class V>
void matmul(const MatmulArgs& args, int64_t begin, int64_t end, float* scratch) noexcept {
  const bool stream = args.input.n_tokens <= V::kStreamTokens * V::kStreamTiles;
  switch (args.matrix->kind) {
    case MatrixKind::kInt4:
      if (stream) return stream_bands<V, Int4Lines<V>>(args, begin, end);
      return with_int4_panel<V>(*args.matrix, [&](auto panel) {
        panel_bands<V, decltype(panel), Int4Lines<V>>(args, begin, end, scratch);
      });
    case MatrixKind::kInt8:
      if (stream) return stream_bands<V, Int8Lines<V>>(args, begin, end);
      return panel_bands<V, typename V::Panel, Int8Lines<V>>(args, begin, end, scratch);
    case MatrixKind::kF32:
      return dense_bands<V, DenseF32<V>>(args, begin, end);
    case MatrixKind::kF16:
      return dense_bands<V, DenseF16<V>>(args, begin, end);
    case MatrixKind::kBf16:
      return dense_bands<V, DenseBf16<V>>(args, begin, end);
  }
}

}  // namespace llama2q
