// How weights and activations lie on the device: in the order in which the threads of a warp load
// the fragments of mma.m16n8k32 (cuda/fragments.h), lane l = 4 g + t.
//
// Columns are dealt out in steps of 64, K padded up to whole steps (and groups to whole steps):
// beyond n_groups * group_size codes and scales are 0, and so are the activations. Thread t of each
// row and token holds columns 8 t .. 8 t + 7 of each half (32 columns) of a step: the mma's k index
// is permuted alike in A and B, which an exact sum does not see.
//
// int4 codes  [n_bands, n_steps, 32 lanes] uint4: words of (row g, half 0), (row g + 8, half 0),
//             (row g, half 1), (row g + 8, half 1); a word holds columns 8 t + i, i = 0..7:
//   lookup    column 8 t + i in nibble i: the file's code;
//   uniform   columns 8 t + i and 8 t + 4 + i, i < 4, in the low and high nibble of byte i: the
//             file's code ^ 8, that is the value in two's complement.
// int8 codes  [n_bands, n_steps, 2 halves, 32 lanes] uint4: (row g, columns 8 t .. 8 t + 3),
//             (row g + 8, the same), (row g, columns 8 t + 4 .. 8 t + 7), (row g + 8, the same).
// scales      [n_bands, padded groups, 8] uint32: f16 of row g in the low half, of g + 8 in the
//             high half. They follow the codes.
// dense       as in the file: [n_bands, cols, 16].
//
// A unit is a step, or a whole group where that is more: S steps, P groups (UnitOf).
//
// Activations of n tokens: records [n_tiles, n_units] of a unit of a tile of `width` tokens (8, 16
// or 64; absent ones are 0), each codes       i8 [S, width, 64]: byte 16 t + 8 h + i of a token is
// column 32 h + 8 t + i, so that a
//             thread's share of both halves is 16 bytes;
// starts      i32 [P, width / 2, 4]: s0, s1, s0, s1 of two tokens, what an accumulator of the
// lookup
//             kind starts from: kFloatBits - 128 * (sum of the codes);
// scales      f32 [P, width];
// and zeros up to a multiple of 16 bytes. With a width of 1, P times s, s, s, s.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/sizes.h"
#include "kernels/args.h"
#include "quant/matrix.h"

namespace llama2q::cuda {

// The bits of 1.5 * 2^23: the sum of an integer |i| < 2^22 and these, taken as a float, is exactly
// 1.5 * 2^23 + i. The dot of a group of at most 128 columns stays below 2^22.
inline constexpr int32_t kFloatBits = 0x4B400000;

// How the codes of a quantized matrix become factors of an mma.
enum class Codes : int32_t {
  kLookup,   // int4 of any grid
  kUniform,  // int4 of the grid code - 8
  kInt8,
};

// Two tables of magnitudes: of grid[0..7], none of which is positive, and of grid[8..15], none
// negative.
struct CodeTable {
  uint32_t negative[2];
  uint32_t positive[2];
};

inline Codes codes_of(const MatrixView& matrix) {
  if (matrix.kind == MatrixKind::kInt8) return Codes::kInt8;
  for (int code = 0; code < 16; ++code) {
    if (matrix.grid[code] != code - 8) return Codes::kLookup;
  }
  return Codes::kUniform;
}

// Whether the two tables can hold the grid.
inline bool has_code_table(const MatrixView& matrix) {
  for (int i = 0; i < 8; ++i) {
    if (matrix.grid[i] > 0 || matrix.grid[i] < -127 || matrix.grid[8 + i] < 0) return false;
  }
  return true;
}

inline CodeTable code_table(const MatrixView& matrix) {
  CodeTable table{};
  for (int i = 0; i < 8; ++i) {
    const int shift = i % 4 * 8;
    table.negative[i / 4] |= static_cast<uint32_t>(-matrix.grid[i]) << shift;
    table.positive[i / 4] |= static_cast<uint32_t>(matrix.grid[8 + i]) << shift;
  }
  return table;
}

template <int kGroup>
struct UnitOf {
  static constexpr int kSteps = kGroup > kStepColumns ? kGroup / kStepColumns : 1;
  static constexpr int kGroups = kGroup > kStepColumns ? 1 : kStepColumns / kGroup;
  static constexpr int kColumns = kSteps * kStepColumns;
};

// Quantized activations of `width * n_tiles` tokens.
struct Activations {
  unsigned char* records;
  int32_t width;
  int32_t n_tiles;
  int32_t n_units;
};

}  // namespace llama2q::cuda
