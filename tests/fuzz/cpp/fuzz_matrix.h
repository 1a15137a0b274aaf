// Weight matrices of any type, with codes and scales as a file may hold them.
#pragma once

#include "base/types.h"
#include "input.h"
#include "quant/matrix.h"

namespace llama2q::fuzz {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void fill_dense(Exact<uint8_t>& bytes, MatrixKind kind, Noise& noise, bool wild) {
  if (wild) {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(noise.next());
    return;
  }
  const int64_t width = kind == MatrixKind::kF32 ? 4 : 2;
  for (int64_t i = 0; i < bytes.size(); i += width) {
    const float value = noise.real() * 0.25f;
    const uint16_t half = kind == MatrixKind::kF16 ? f32_to_f16(value)
                                                   : static_cast<uint16_t>(float_bits(value) >> 16);
    std::memcpy(bytes.data() + i,
                kind == MatrixKind::kF32 ? static_cast<const void*>(&value) : &half,
                static_cast<size_t>(width));
  }
}

// `wild`: data that verify would refuse (code -128, scales that are not finite), but a load does
// not read.
inline void fill_quantized(Exact<uint8_t>& codes, Exact<uint16_t>& scales, bool int8, Noise& noise,
                           bool wild) {
  for (uint8_t& code : codes) {
    code = static_cast<uint8_t>(noise.next());
    if (int8 && !wild && code == 0x80) code = 0;
  }
  for (uint16_t& scale : scales) {
    scale = wild ? static_cast<uint16_t>(noise.next()) : f32_to_f16(noise.real() * 0x1p-9f);
  }
}

struct Matrix {
  Matrix(Input& input, int64_t rows, int64_t cols, int64_t group_size, bool wild)
      : view{.kind = input.pick({MatrixKind::kInt4, MatrixKind::kInt8, MatrixKind::kF32,
                                 MatrixKind::kF16, MatrixKind::kBf16}),
             .rows = rows,
             .cols = cols,
             .n_bands = ceil_div(rows, kBandRows),
             .group_size = 0,
             .n_groups = 0,
             .codes = nullptr,
             .scales = nullptr,
             .grid = {}} {
    Noise noise(input.byte());
    if (view.kind == MatrixKind::kInt4 || view.kind == MatrixKind::kInt8) {
      const bool int8 = view.kind == MatrixKind::kInt8;
      view.group_size = group_size;
      view.n_groups = ceil_div(cols, group_size);
      const int64_t k = view.n_groups * group_size;
      codes = Exact<uint8_t>(view.n_bands * k * (int8 ? 16 : 8));
      scales = Exact<uint16_t>(view.n_bands * view.n_groups * kBandRows);
      fill_quantized(codes, scales, int8, noise, wild);
      view.scales = scales.data();
      for (int i = 0; i < 16; ++i) view.grid[i] = static_cast<int8_t>(16 * i - 127 + (i * i) / 16);
    } else {
      codes =
          Exact<uint8_t>(view.n_bands * cols * kBandRows * (view.kind == MatrixKind::kF32 ? 4 : 2));
      fill_dense(codes, view.kind, noise, wild);
    }
    view.codes = codes.data();
  }

  MatrixView view;
  Exact<uint8_t> codes;
  Exact<uint16_t> scales;
};

struct Embedding {
  Embedding(Input& input, int64_t rows, int64_t cols, int64_t group_size, bool wild)
      : view{.kind = input.pick(
                 {MatrixKind::kInt8, MatrixKind::kF32, MatrixKind::kF16, MatrixKind::kBf16}),
             .rows = rows,
             .cols = cols,
             .group_size = 0,
             .n_groups = 0,
             .codes = nullptr,
             .scales = nullptr} {
    Noise noise(input.byte());
    if (view.kind == MatrixKind::kInt8) {
      view.group_size = group_size;
      view.n_groups = ceil_div(cols, group_size);
      codes = Exact<uint8_t>(rows * cols);
      scales = Exact<uint16_t>(rows * view.n_groups);
      fill_quantized(codes, scales, true, noise, wild);
      view.scales = scales.data();
    } else {
      codes = Exact<uint8_t>(rows * cols * (view.kind == MatrixKind::kF32 ? 4 : 2));
      fill_dense(codes, view.kind, noise, wild);
    }
    view.codes = codes.data();
  }

  EmbeddingView view;
  Exact<uint8_t> codes;
  Exact<uint16_t> scales;
};

}  // namespace llama2q::fuzz
