// int4 lines: the bit order, for kernels and quantizers alike.
//
// A line is 64 bytes and holds 16 rows x 8 columns. Byte 4*r + i holds element (r, i) in its low
// nibble and (r, 4 + i) in its high nibble; the element's value is grid[nibble] * scale.
#pragma once

#include "quant/matrix.h"

namespace llama2q {

// Reads int4 lines for the vector class V (csrc/README.md lists what V offers).
template <class V>
struct Int4Lines {
  static constexpr int64_t kColumns = kInt4LineColumns;
  typename V::Grid grid;

  explicit Int4Lines(typename V::Grid values) : grid(values) {}

  // dots[t] += the products of the line's 8 columns with token t's 8 activations.
  // x: i8 [2, kTokens, 4].
  template <int kTokens>
  void accumulate(const uint8_t* line, const int8_t* x, typename V::Dot (&dots)[kTokens]) const {
    typename V::Line low, high;
    V::int4_lines(line, grid, low, high);
    for (int t = 0; t < kTokens; ++t) V::dot(dots[t], low, high, x + 4 * t, x + 4 * (kTokens + t));
  }

  // Writes the line as panel lines of P, `stride` bytes apart; returns where the next one goes.
  template <class P>
  uint8_t* unpack(const uint8_t* line, uint8_t* out, int64_t stride) const {
    typename V::Line low, high;
    V::int4_lines(line, grid, low, high);
    if constexpr (P::kColumns == kColumns) {
      return P::store(low, high, out, stride);
    } else {
      return P::store(high, P::store(low, out, stride), stride);
    }
  }
};

// Stores codes where the kernels read them.
struct Int4Place {
  // line: u8 [64], which may hold anything before; row in 0..15; codes: u8 [8] in 0..15, of the
  // row's columns.
  static void put_row(uint8_t* line, int64_t row, const uint8_t* codes) {
    uint32_t low, high;  // no shift by 4 leaves its byte
    __builtin_memcpy(&low, codes, sizeof low);
    __builtin_memcpy(&high, codes + sizeof low, sizeof high);
    low |= high << 4;
    __builtin_memcpy(line + 4 * row, &low, sizeof low);
  }

  // codes: u8 [8, 16], by column.
  static void put_columns(uint8_t* line, const uint8_t (*codes)[kBandRows]) {
    for (int64_t row = 0; row < kBandRows; ++row) {
      for (int64_t i = 0; i < 4; ++i) {
        line[4 * row + i] = static_cast<uint8_t>(codes[i][row] | codes[4 + i][row] << 4);
      }
    }
  }
};

}  // namespace llama2q
