#include "calibrate/int4.h"

#include <algorithm>

#include "base/types.h"
#include "calibrate/columns.h"

namespace llama2q {
namespace {

template <class Element, class Widen>
void load_typed(const WeightSource& source, int64_t first_row, int64_t rows, int64_t column,
                int64_t n, float* out, int64_t stride, Widen widen) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto* from =
        static_cast<const Element*>(source.data) + (first_row + r) * source.cols + column;
    for (int64_t j = 0; j < n; ++j) out[j * stride + r] = widen(from[j]);
  }
}

}  // namespace

void load_columns(const WeightSource& source, int64_t first_row, int64_t width, int64_t column,
                  int64_t n, float* out, int64_t stride) noexcept {
  const int64_t rows = std::min(width, source.rows - first_row);
  if (rows < width) {
    for (int64_t j = 0; j < n; ++j) std::fill(out + j * stride + rows, out + j * stride + width, 0);
  }
  switch (source.type) {
    case SourceType::kF32:
      return load_typed<float>(source, first_row, rows, column, n, out, stride,
                               [](float x) { return x; });
    case SourceType::kF16:
      return load_typed<uint16_t>(source, first_row, rows, column, n, out, stride, f16_to_f32);
    case SourceType::kBf16:
      return load_typed<uint16_t>(source, first_row, rows, column, n, out, stride, bf16_to_f32);
  }
}

bool note_fault(const Int4Matrix& matrix, int64_t band, int64_t column, int64_t n, const float* x,
                int64_t stride, const uint16_t* scales, QuantizeFault& fault) noexcept {
  bool found = false;
  for (int64_t r = 0; r < kBandRows; ++r) {
    const uint32_t magnitude = scales[r] & 0x7fffu;
    if (magnitude < 0x7c00u) continue;
    found = true;
    const int64_t first = (band * kBandRows + r) * matrix.source.cols + column;
    int64_t& place = magnitude == 0x7c00u ? fault.overflow : fault.non_finite;
    if (place >= 0) continue;
    place = first;
    if (magnitude == 0x7c00u) continue;
    for (int64_t j = 0; j < n; ++j) {
      if ((float_bits(x[j * stride + r]) & 0x7fffffffu) < 0x7f800000u) continue;
      place = first + j;
      break;
    }
  }
  return found;
}

QuantizeFault search_int4(const KernelTable& table, const Int4Matrix& matrix,
                          const float* importance, int64_t begin, int64_t end,
                          const Int4Output& output) noexcept {
  const GridSearch grid = grid_search(matrix.grid);
  const WeightSource& source = matrix.source;
  alignas(64) float x[kMaxGroup * kBandRows];
  GroupCodes codes;
  uint16_t scales[kBandRows];
  QuantizeFault fault;
  for (int64_t band = begin; band < end; ++band) {
    for (int64_t g = 0; g * matrix.group_size < source.cols; ++g) {
      const int64_t column = g * matrix.group_size;
      const int64_t n = std::min(matrix.group_size, source.cols - column);
      load_columns(source, band * kBandRows, kBandRows, column, n, x, kBandRows);
      const GroupColumns group = {x, importance == nullptr ? nullptr : importance + column, n,
                                  kBandRows};
      table.extreme_scales(group, grid, scales);
      if (note_fault(matrix, band, column, n, x, kBandRows, scales, fault)) continue;
      table.search_scales(group, grid, scales);
      table.round_group(group, grid, scales, codes.data());
      store_group(matrix, band, g, n, codes, scales, output);
    }
  }
  return fault;
}

}  // namespace llama2q
