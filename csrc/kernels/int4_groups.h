// Scales and codes of int4 groups, 16 rows in lanes: a group's columns follow one another, so every
// sum runs over ascending columns, whatever the instruction set. Only + - * / and comparisons, but
// for the products of `feed_back`, which are fma.
#pragma once

#include "base/types.h"
#include "kernels/args.h"

namespace llama2q {

// The code of the grid value nearest to y; halfway between two it is the lower one's.
template <class V>
[[gnu::always_inline]] inline typename V::I nearest_code(typename V::F y, const GridSearch& grid) {
  typename V::I code = V::add_if_greater(V::zero_int(), y, V::broadcast(grid.middle), 8);
  code = V::add_if_greater(code, y, V::pick(grid.bound[0], code), 4);
  code = V::add_if_greater(code, y, V::pick(grid.bound[1], code), 2);
  return V::add_if_greater(code, y, V::pick(grid.bound[2], code), 1);
}

// The element of largest magnitude of each row: the negative one of a tie.
template <class V>
typename V::F extremes(const GroupColumns& group) {
  typename V::F low = V::load(group.x), high = low;
  for (int64_t j = 1; j < group.n; ++j) {
    const typename V::F x = V::load(group.x + j * group.stride);
    low = V::min(x, low);
    high = V::max(x, high);
  }
  alignas(64) float lows[kBandRows], highs[kBandRows];
  V::store(lows, low);
  V::store(highs, high);
  for (int r = 0; r < kBandRows; ++r) lows[r] = -lows[r] >= highs[r] ? lows[r] : highs[r];
  return V::load(lows);
}

// What a row's scale, tried on its group, gives; see `try_scales`.
struct ScaleTrial {
  alignas(64) float error[kBandRows];
  alignas(64) float product[kBandRows];  // of the grid values with the weights
  alignas(64) float square[kBandRows];   // of the grid values
};

// Rounds x / scale to grid values q: error = sum w (x - q scale)^2, product = sum w q x,
// square = sum w q^2.
template <class V, bool kWeighted>
void try_scales(const GroupColumns& group, const GridSearch& grid, typename V::F scale,
                ScaleTrial& trial) {
  using F = typename V::F;
  const F inverse = V::div(V::broadcast(1.0f), scale);
  F error = V::broadcast(0.0f), product = error, square = error;
  for (int64_t j = 0; j < group.n; ++j) {
    const F x = V::load(group.x + j * group.stride);
    const F q = V::pick(grid.value, nearest_code<V>(V::mul(x, inverse), grid));
    const F rest = V::sub(x, V::mul(q, scale));
    F errors = V::mul(rest, rest), products = V::mul(q, x), squares = V::mul(q, q);
    if constexpr (kWeighted) {
      const F weight = V::broadcast(group.weights[j]);
      errors = V::mul(errors, weight);
      products = V::mul(products, weight);
      squares = V::mul(squares, weight);
    }
    error = V::add(error, errors);
    product = V::add(product, products);
    square = V::add(square, squares);
  }
  V::store(trial.error, error);
  V::store(trial.product, product);
  V::store(trial.square, square);
}

// What search_scales() has found so far for each row.
struct BestScales {
  float error[kBandRows];
  float refit[kBandRows];  // the least-squares scale of the codes that the best scale gave
  uint16_t* scales;
};

// Tries a scale for each row; zero, infinite and NaN ones are passed over.
template <class V>
void improve(const GroupColumns& group, const GridSearch& grid, const float* wanted,
             BestScales& best) {
  alignas(64) float tried[kBandRows];
  uint16_t halves[kBandRows];
  for (int r = 0; r < kBandRows; ++r) {
    const uint16_t half = f32_to_f16_scale(wanted[r]), magnitude = half & 0x7fffu;
    halves[r] = magnitude == 0 || magnitude >= 0x7c00u ? 0 : half;
    tried[r] = halves[r] == 0 ? 1.0f : f16_to_f32(half);
  }
  ScaleTrial trial;
  if (group.weights == nullptr) {
    try_scales<V, false>(group, grid, V::load(tried), trial);
  } else {
    try_scales<V, true>(group, grid, V::load(tried), trial);
  }
  for (int r = 0; r < kBandRows; ++r) {
    if (halves[r] == 0 || !(trial.error[r] < best.error[r])) continue;
    best.error[r] = trial.error[r];
    best.refit[r] = trial.square[r] > 0.0f ? trial.product[r] / trial.square[r] : 0.0f;
    best.scales[r] = halves[r];
  }
}

// src/llama2q/quant/search.py is the definition: the extreme is put on either end of the grid,
// times each of kScaleFactors; then the least-squares scale of the best one's codes is tried,
// kScaleRefits times. The first of the least errors wins.
template <class V>
void search_scales(const GroupColumns& group, const GridSearch& grid, uint16_t* scales) noexcept {
  alignas(64) float extreme[kBandRows];
  float wanted[kBandRows];
  V::store(extreme, extremes<V>(group));
  BestScales best;
  best.scales = scales;
  for (int r = 0; r < kBandRows; ++r) {
    best.error[r] = __builtin_inff();
    best.refit[r] = 0.0f;
  }
  for (int end = 0; end < 16; end += 15) {
    for (const float factor : kScaleFactors) {
      for (int r = 0; r < kBandRows; ++r) wanted[r] = extreme[r] / grid.value[end] * factor;
      improve<V>(group, grid, wanted, best);
    }
  }
  for (int round = 0; round < kScaleRefits; ++round) {
    for (int r = 0; r < kBandRows; ++r) wanted[r] = best.refit[r];
    improve<V>(group, grid, wanted, best);
  }
}

// The scale that puts each row's extreme on the grid's lowest value: f16 bits, 0 for a row of
// zeros, infinite where no f16 holds it; NaN if the row holds a NaN or an infinity.
template <class V>
void extreme_scales(const GroupColumns& group, const GridSearch& grid, uint16_t* scales) noexcept {
  alignas(64) float extreme[kBandRows];
  alignas(64) uint32_t magnitude[kBandRows];
  typename V::I largest = V::zero_int();
  for (int64_t j = 0; j < group.n; ++j) {
    largest = V::max_int(largest, V::magnitude_bits(V::load(group.x + j * group.stride)));
  }
  V::store(extreme, extremes<V>(group));
  __builtin_memcpy(magnitude, &largest, sizeof magnitude);
  for (int r = 0; r < kBandRows; ++r) {
    const uint16_t half = f32_to_f16_scale(extreme[r] / grid.value[0]);
    scales[r] = magnitude[r] >= 0x7f800000u ? 0x7e00u : (half & 0x7fffu) == 0 ? 0 : half;
  }
}

template <class V>
typename V::F widen_scales(const uint16_t* scales) {
  alignas(64) float wide[kBandRows];
  for (int r = 0; r < kBandRows; ++r) wide[r] = scales[r] == 0 ? 1.0f : f16_to_f32(scales[r]);
  return V::load(wide);
}

template <class V>
void round_group(const GroupColumns& group, const GridSearch& grid, const uint16_t* scales,
                 uint8_t* codes) noexcept {
  const typename V::F scale = widen_scales<V>(scales);
  for (int64_t j = 0; j < group.n; ++j) {
    const typename V::F y = V::div(V::load(group.x + j * group.stride), scale);
    V::store_int8(reinterpret_cast<int8_t*>(codes) + j * kBandRows, nearest_code<V>(y, grid));
  }
}

// Rounds a group's columns from the last to the first, and hands the error of each on to those
// before it: with e = weight - value, target[i] = fma(e[j], factor[j, i], target[i]) for i < j.
// False if a target is not finite or needs a scale beyond f16.
template <class V>
bool feed_back(const FeedbackGroup& group, const GridSearch& grid, uint16_t* scales,
               uint8_t* codes) noexcept {
  using F = typename V::F;
  const int64_t n = group.n, stride = group.stride;
  const GroupColumns targets = {group.targets, group.importance, n, stride};
  extreme_scales<V>(targets, grid, scales);
  for (int r = 0; r < kBandRows; ++r) {
    if ((scales[r] & 0x7fffu) >= 0x7c00u) return false;
  }
  search_scales<V>(targets, grid, scales);
  alignas(64) float present[kBandRows];
  for (int r = 0; r < kBandRows; ++r) present[r] = scales[r] == 0 ? 0.0f : f16_to_f32(scales[r]);
  const F scale = V::load(present), divisor = widen_scales<V>(scales);
  for (int64_t j = n - 1; j >= 0; --j) {
    const F y = V::div(V::load(group.targets + j * stride), divisor);
    const typename V::I code = nearest_code<V>(y, grid);
    V::store_int8(reinterpret_cast<int8_t*>(codes) + j * kBandRows, code);
    const F value = V::mul(V::pick(grid.value, code), scale);
    const F error = V::sub(V::load(group.weights + j * stride), value);
    V::store(group.errors + j * stride, error);
    const float* factor = group.factor + j * group.factor_stride;
    for (int64_t i = 0; i < j; ++i) {
      float* target = group.targets + i * stride;
      V::store(target, V::fma(error, V::broadcast(factor[i]), V::load(target)));
    }
  }
  return true;
}

}  // namespace llama2q
