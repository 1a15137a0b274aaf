// Bytes on a device, for those who plan without one, too. No CUDA header.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "quant/matrix.h"

namespace llama2q::cuda {

inline constexpr int kStepColumns = 64;
inline constexpr int kLanes = 32;

inline bool is_quantized(const MatrixView& matrix) { return matrix.group_size != 0; }

// Steps of a quantized matrix, or of activations that it multiplies.
constexpr int64_t steps_of(int64_t n_groups, int64_t group_size) {
  return (n_groups * group_size + kStepColumns - 1) / kStepColumns;
}

// Groups, padded to whole steps.
constexpr int64_t padded_groups(int64_t n_steps, int64_t group_size) {
  return n_steps * kStepColumns / group_size;
}

constexpr int64_t unit_columns(int64_t group_size) {
  return std::max<int64_t>(group_size, kStepColumns);
}

// Units of rows of `cols` columns.
constexpr int64_t units_of(int64_t cols, int64_t group_size) {
  return (cols + unit_columns(group_size) - 1) / unit_columns(group_size);
}

// Bytes of a step of a band.
constexpr int64_t step_bytes(MatrixKind kind) {
  return (kind == MatrixKind::kInt8 ? 32 : 16) * int64_t{kLanes};
}

inline int64_t code_bytes(const MatrixView& matrix) {
  if (!is_quantized(matrix)) {
    const int64_t element = matrix.kind == MatrixKind::kF32 ? 4 : 2;
    return matrix.n_bands * matrix.cols * kBandRows * element;
  }
  const int64_t n_steps = steps_of(matrix.n_groups, matrix.group_size);
  return matrix.n_bands * n_steps * step_bytes(matrix.kind);
}

inline int64_t scale_bytes(const MatrixView& matrix) {
  if (!is_quantized(matrix)) return 0;
  const int64_t n_steps = steps_of(matrix.n_groups, matrix.group_size);
  return matrix.n_bands * padded_groups(n_steps, matrix.group_size) * kBandRows *
         int64_t{sizeof(uint16_t)};
}

// Of a matrix as cuda/layout.h lays it, a multiple of 256.
inline int64_t matrix_bytes(const MatrixView& matrix) {
  return (code_bytes(matrix) + scale_bytes(matrix) + 255) / 256 * 256;
}

// Where the parts of a record of activations (cuda/layout.h) begin, in bytes.
struct RecordLayout {
  int starts, scales, bytes;
};

constexpr RecordLayout record_layout(int group_size, int width) {
  const int steps = group_size > kStepColumns ? group_size / kStepColumns : 1;
  const int groups = group_size > kStepColumns ? 1 : kStepColumns / group_size;
  RecordLayout at{};
  at.starts = steps * width * kStepColumns;
  at.scales = at.starts + groups * ((width + 1) / 2) * 16;
  at.bytes = (at.scales + groups * width * 4 + 15) / 16 * 16;
  return at;
}

}  // namespace llama2q::cuda
