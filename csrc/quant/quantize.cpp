#include "quant/quantize.h"

#include <algorithm>

#include "base/types.h"
#include "quant/dense.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace llama2q {
namespace {

constexpr int64_t kMaxGroup = 128;
constexpr uint32_t kInfinityBits = 0x7f800000u;

int64_t groups_of(int64_t cols, int64_t group_size) { return (cols + group_size - 1) / group_size; }

// One group of one row, widened to float.
struct Group {
  float x[kMaxGroup];
  int64_t n;      // elements present
  uint32_t amax;  // bits of the largest magnitude
};

template <class Widen, class Element>
void widen(const void* data, int64_t first, Group& group, Widen to_float, Element) {
  const Element* p = static_cast<const Element*>(data) + first;
  for (int64_t i = 0; i < group.n; ++i) group.x[i] = to_float(p[i]);
}

void load_group(const WeightSource& source, int64_t row, int64_t column, int64_t group_size,
                Group& group) {
  group.n = std::min(group_size, source.cols - column);
  const int64_t first = row * source.cols + column;
  switch (source.type) {
    case SourceType::kF32:
      widen(source.data, first, group, [](float x) { return x; }, float{});
      break;
    case SourceType::kF16:
      widen(source.data, first, group, f16_to_f32, uint16_t{});
      break;
    case SourceType::kBf16:
      widen(source.data, first, group, bf16_to_f32, uint16_t{});
      break;
  }
  uint32_t amax = 0;
  for (int64_t i = 0; i < group.n; ++i) {
    amax = std::max(amax, float_bits(group.x[i]) & 0x7fffffffu);
  }
  group.amax = amax;
}

int64_t first_non_finite(const Group& group) {
  for (int64_t i = 0; i < group.n; ++i) {
    if ((float_bits(group.x[i]) & 0x7fffffffu) >= kInfinityBits) return i;
  }
  return -1;
}

// Checks the group and gives its scale: -1 on a fault, else the f16 bits (0 for a zero group).
int32_t group_scale(const WeightSource& source, int64_t row, int64_t column, const Group& group,
                    float numerator, float divisor, QuantizeFault& fault) {
  const int64_t first = row * source.cols + column;
  if (group.amax >= kInfinityBits) {
    if (fault.non_finite < 0) fault.non_finite = first + first_non_finite(group);
    return -1;
  }
  if (group.amax == 0) return 0;
  const uint16_t scale = f32_to_f16_scale(numerator / divisor);
  if ((scale & 0x7fffu) >= 0x7c00u) {
    if (fault.overflow < 0) fault.overflow = first;
    return -1;
  }
  return (scale & 0x7fffu) == 0 ? 0 : scale;  // a quotient that underflowed to -0
}

// The grid value nearest to x / scale: the number of midpoints below it, so ties go down.
void int4_codes(const Group& group, const float* midpoints, float scale, uint8_t* codes) {
  float y[kMaxGroup];
  int32_t count[kMaxGroup] = {};
  for (int64_t i = 0; i < group.n; ++i) y[i] = group.x[i] / scale;
  for (int m = 0; m < 15; ++m) {
    for (int64_t i = 0; i < group.n; ++i) count[i] += midpoints[m] < y[i] ? 1 : 0;
  }
  for (int64_t i = 0; i < group.n; ++i) codes[i] = static_cast<uint8_t>(count[i]);
}

void int8_codes(const Group& group, float scale, int8_t* codes) {
  for (int64_t i = 0; i < group.n; ++i) {
    // Ties to even by the magic number: |x / scale| is at most 128, far below 2^22.
    const float q = (group.x[i] / scale + 12582912.0f) - 12582912.0f;
    codes[i] = static_cast<int8_t>(std::min(std::max(q, -127.0f), 127.0f));
  }
}

// Calls one(row, column, g) for every group of every row in bands [begin, end).
template <class One>
void for_each_group(const WeightSource& source, int64_t group_size, int64_t begin, int64_t end,
                    One one) {
  const int64_t last = std::min(end * kBandRows, source.rows);
  for (int64_t row = begin * kBandRows; row < last; ++row) {
    for (int64_t g = 0; g * group_size < source.cols; ++g) one(row, g * group_size, g);
  }
}

}  // namespace

QuantizeFault quantize_int4(const WeightSource& source, int64_t group_size, const int8_t* grid,
                            int64_t begin, int64_t end, uint8_t* codes, uint16_t* scales) noexcept {
  float midpoints[15];
  for (int i = 0; i < 15; ++i) {
    midpoints[i] = (static_cast<float>(grid[i]) + static_cast<float>(grid[i + 1])) / 2.0f;
  }
  const int64_t n_groups = groups_of(source.cols, group_size);
  const int64_t band_bytes = n_groups * group_size / kInt4LineColumns * kLineBytes;
  QuantizeFault fault;
  Group group;
  uint8_t row_codes[kMaxGroup];
  for_each_group(source, group_size, begin, end, [&](int64_t row, int64_t column, int64_t g) {
    load_group(source, row, column, group_size, group);
    // The extreme maps to grid[0], the grid's largest magnitude; on a tie the negative one does.
    const auto [low, high] = std::minmax_element(group.x, group.x + group.n);
    const float extreme = -*low >= *high ? *low : *high;
    const int32_t half =
        group_scale(source, row, column, group, extreme, static_cast<float>(grid[0]), fault);
    if (half <= 0) return;
    const int64_t band = row / kBandRows, r = row % kBandRows;
    scales[(band * n_groups + g) * kBandRows + r] = static_cast<uint16_t>(half);
    int4_codes(group, midpoints, f16_to_f32(static_cast<uint16_t>(half)), row_codes);
    uint8_t* line = codes + band * band_bytes + column / kInt4LineColumns * kLineBytes;
    for (int64_t i = 0; i < group.n; ++i) {
      Int4Place::put(line + i / kInt4LineColumns * kLineBytes, r, i % kInt4LineColumns,
                     row_codes[i]);
    }
  });
  return fault;
}

QuantizeFault quantize_int8(const WeightSource& source, int64_t group_size, int64_t begin,
                            int64_t end, int8_t* codes, uint16_t* scales) noexcept {
  const int64_t n_groups = groups_of(source.cols, group_size);
  const int64_t band_bytes = n_groups * group_size / kInt8LineColumns * kLineBytes;
  QuantizeFault fault;
  Group group;
  int8_t row_codes[kMaxGroup];
  for_each_group(source, group_size, begin, end, [&](int64_t row, int64_t column, int64_t g) {
    load_group(source, row, column, group_size, group);
    const int32_t half =
        group_scale(source, row, column, group, bits_float(group.amax), 127.0f, fault);
    if (half <= 0) return;
    const int64_t band = row / kBandRows, r = row % kBandRows;
    scales[(band * n_groups + g) * kBandRows + r] = static_cast<uint16_t>(half);
    int8_codes(group, f16_to_f32(static_cast<uint16_t>(half)), row_codes);
    int8_t* line = codes + band * band_bytes + column / kInt8LineColumns * kLineBytes;
    for (int64_t i = 0; i < group.n; ++i) {
      Int8Place::put(line + i / kInt8LineColumns * kLineBytes, r, i % kInt8LineColumns,
                     row_codes[i]);
    }
  });
  return fault;
}

QuantizeFault quantize_rows_int8(const WeightSource& source, int64_t group_size, int64_t begin,
                                 int64_t end, int8_t* codes, uint16_t* scales) noexcept {
  const int64_t n_groups = groups_of(source.cols, group_size);
  QuantizeFault fault;
  Group group;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const int64_t column = g * group_size;
      load_group(source, row, column, group_size, group);
      const int32_t half =
          group_scale(source, row, column, group, bits_float(group.amax), 127.0f, fault);
      if (half <= 0) continue;
      scales[row * n_groups + g] = static_cast<uint16_t>(half);
      int8_codes(group, f16_to_f32(static_cast<uint16_t>(half)),
                 codes + row * source.cols + column);
    }
  }
  return fault;
}

namespace {

template <class Element, class Bits>
QuantizeFault pack_dense_typed(const WeightSource& source, int64_t begin, int64_t end,
                               Element* values, Bits infinity, Bits mask) {
  const auto* p = static_cast<const Element*>(source.data);
  QuantizeFault fault;
  for (int64_t row = begin * kBandRows; row < std::min(end * kBandRows, source.rows); ++row) {
    Element* band = values + row / kBandRows * source.cols * kBandRows;
    for (int64_t k = 0; k < source.cols; ++k) {
      const Element value = p[row * source.cols + k];
      Bits bits;
      __builtin_memcpy(&bits, &value, sizeof bits);
      if ((bits & mask) >= infinity && fault.non_finite < 0) {
        fault.non_finite = row * source.cols + k;
      }
      band[DensePlace::at(row % kBandRows, k)] = value;
    }
  }
  return fault;
}

}  // namespace

QuantizeFault pack_dense(const WeightSource& source, int64_t begin, int64_t end,
                         void* values) noexcept {
  switch (source.type) {
    case SourceType::kF32:
      return pack_dense_typed<float, uint32_t>(source, begin, end, static_cast<float*>(values),
                                               kInfinityBits, 0x7fffffffu);
    case SourceType::kF16:
      return pack_dense_typed<uint16_t, uint16_t>(source, begin, end,
                                                  static_cast<uint16_t*>(values), 0x7c00, 0x7fff);
    case SourceType::kBf16:
      return pack_dense_typed<uint16_t, uint16_t>(source, begin, end,
                                                  static_cast<uint16_t*>(values), 0x7f80, 0x7fff);
  }
  return {};
}

}  // namespace llama2q
