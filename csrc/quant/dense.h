// Dense bands: [n_bands, cols, 16] in f32, f16 or bf16; element [b, k, r] = (row 16 b + r, column
// k).
#pragma once

#include "quant/matrix.h"

namespace llama2q {

// Loads 16 values of a dense type as floats.
template <class V>
struct DenseF32 {
  using Element = float;
  static typename V::F load(const float* p) { return V::load(p); }
  static typename V::F load_partial(const float* p, int64_t n) { return V::load_partial(p, n); }
};

template <class V>
struct DenseF16 {
  using Element = uint16_t;
  static typename V::F load(const uint16_t* p) { return V::load_f16(p); }
  static typename V::F load_partial(const uint16_t* p, int64_t n) {
    return V::load_f16_partial(p, n);
  }
};

template <class V>
struct DenseBf16 {
  using Element = uint16_t;
  static typename V::F load(const uint16_t* p) { return V::load_bf16(p); }
  static typename V::F load_partial(const uint16_t* p, int64_t n) {
    return V::load_bf16_partial(p, n);
  }
};

struct DensePlace {
  // Index of (row, k) inside one band.
  static int64_t at(int64_t row, int64_t k) { return k * kBandRows + row; }
};

}  // namespace llama2q
