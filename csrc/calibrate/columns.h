// Weights with rows in lanes, as the int4 quantizers take them, and back into the file's lines.
#pragma once

#include <algorithm>

#include "calibrate/int4.h"
#include "quant/int4.h"

namespace llama2q {

inline GridSearch grid_search(const int8_t* grid) {
  GridSearch search = {};
  const auto midpoint = [&](int i) { return static_cast<float>(grid[i] + grid[i + 1]) / 2.0f; };
  for (int i = 0; i < 16; ++i) search.value[i] = grid[i];
  for (int s = 0, step = 4; s < 3; ++s, step /= 2) {
    for (int code = 0; code + step < 16; ++code) search.bound[s][code] = midpoint(code + step - 1);
  }
  search.middle = midpoint(7);
  return search;
}

// Rows [first_row, first_row + width) and n columns from `column` on -> out f32 [n, stride], width
// columns of it; rows beyond the last become 0.
void load_columns(const WeightSource& source, int64_t first_row, int64_t width, int64_t column,
                  int64_t n, float* out, int64_t stride) noexcept;

// The codes of a group before they are packed: u8 [column, row], whole lines of them.
struct GroupCodes {
  alignas(64) uint8_t code[kMaxGroup][kBandRows];

  uint8_t* data() { return &code[0][0]; }
};

// The first n columns of codes, and scales f16 [16], of a group -> their places in the file. What
// lies beyond the columns, and rows whose scale is 0, become 0.
inline void store_group(const Int4Matrix& matrix, int64_t band, int64_t group, int64_t n,
                        GroupCodes& codes, const uint16_t* scales, const Int4Output& output) {
  const int64_t n_groups = (matrix.source.cols + matrix.group_size - 1) / matrix.group_size;
  const int64_t n_lines = matrix.group_size / kInt4LineColumns;
  std::copy_n(scales, kBandRows, output.scales + (band * n_groups + group) * kBandRows);
  std::fill(codes.code[n], codes.code[0] + matrix.group_size * kBandRows, uint8_t{0});
  for (int64_t r = 0; r < kBandRows; ++r) {
    for (int64_t j = 0; scales[r] == 0 && j < n; ++j) codes.code[j][r] = 0;
  }
  uint8_t* line = output.codes + (band * n_groups + group) * n_lines * kLineBytes;
  for (int64_t j = 0; j < matrix.group_size; j += kInt4LineColumns, line += kLineBytes) {
    Int4Place::put_columns(line, codes.code + j);
  }
}

// Whether extreme_scales() found something wrong with a group; notes the first place.
bool note_fault(const Int4Matrix& matrix, int64_t band, int64_t column, int64_t n, const float* x,
                int64_t stride, const uint16_t* scales, QuantizeFault& fault) noexcept;

}  // namespace llama2q
