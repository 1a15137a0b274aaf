// int8 lines: the byte order, for kernels and quantizers alike.
//
// A line is 64 bytes and holds 16 rows x 4 columns: byte 4*r + i is element (r, i), in [-127, 127].
#pragma once

#include "quant/matrix.h"

namespace llama2q {

template <class V>
struct Int8Lines {
  static constexpr int64_t kColumns = kInt8LineColumns;

  explicit Int8Lines(typename V::Grid) {}

  // dots[t] += the products of the line's 4 columns with token t's 4 activations.
  // x: i8 [1, kTokens, 4].
  template <int kTokens>
  void accumulate(const uint8_t* line, const int8_t* x, typename V::Dot (&dots)[kTokens]) const {
    const typename V::Line values = V::int8_line(line);
    for (int t = 0; t < kTokens; ++t) V::dot(dots[t], values, x + 4 * t);
  }

  // Writes the line, or two where a panel line of P holds as many, as panel lines `stride` bytes
  // apart; returns where the next one goes.
  template <class P>
  uint8_t* unpack(const uint8_t* line, uint8_t* out, int64_t stride) const {
    if constexpr (P::kColumns == 2 * kColumns) {
      return P::store(V::int8_line(line), V::int8_line(line + kLineBytes), out, stride);
    } else {
      return P::store(V::int8_line(line), out, stride);
    }
  }
};

struct Int8Place {
  // line: i8 [64]; row in 0..15; codes: i8 [4], of the line's columns.
  static void put_row(int8_t* line, int64_t row, const int8_t* codes) {
    __builtin_memcpy(line + 4 * row, codes, 4);
  }
};

}  // namespace llama2q
