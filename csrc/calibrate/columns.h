// Weights with rows in lanes, as the int4 quantizers take them, and back into the file's lines.
#pragma once

#include <algorithm>

#include "calibrate/int4.h"
#include "quant/int4.h"

namespace llama2q {

inline GridSteps grid_steps(const int8_t* grid) {
  GridSteps steps;
  steps.lowest = grid[0];
  steps.highest = grid[15];
  for (int i = 0; i < 15; ++i) {
    steps.midpoint[i] = static_cast<float>(grid[i] + grid[i + 1]) / 2.0f;
    steps.step[i] = static_cast<float>(grid[i + 1] - grid[i]);
  }
  return steps;
}

// Rows [first_row, first_row + width) and n columns from `column` on -> out f32 [n, stride], width
// columns of it; rows beyond the last become 0.
void load_columns(const WeightSource& source, int64_t first_row, int64_t width, int64_t column,
                  int64_t n, float* out, int64_t stride) noexcept;

// codes u8 [n, 16] and scales f16 [16] of a group -> their places in the file.
inline void store_group(const Int4Matrix& matrix, int64_t band, int64_t group, int64_t n,
                        const uint8_t* codes, const uint16_t* scales, const Int4Output& output) {
  const int64_t n_groups = (matrix.source.cols + matrix.group_size - 1) / matrix.group_size;
  const int64_t lines = matrix.group_size / kInt4LineColumns;
  uint8_t* line = output.codes + (band * n_groups + group) * lines * kLineBytes;
  std::copy_n(scales, kBandRows, output.scales + (band * n_groups + group) * kBandRows);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t r = 0; r < kBandRows; ++r) {
      if (scales[r] == 0) continue;
      Int4Place::put(line + j / kInt4LineColumns * kLineBytes, r, j % kInt4LineColumns,
                     codes[j * kBandRows + r]);
    }
  }
}

// Whether extreme_scales() found something wrong with a group; notes the first place.
bool note_fault(const Int4Matrix& matrix, int64_t band, int64_t column, int64_t n, const float* x,
                int64_t stride, const uint16_t* scales, QuantizeFault& fault) noexcept;

}  // namespace llama2q
