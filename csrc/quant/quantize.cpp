#include "quant/quantize.h"

#include <algorithm>

#include "base/types.h"
#include "quant/dense.h"
#include "quant/groups.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace llama2q {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;

int64_t groups_of(int64_t cols, int64_t group_size) { return (cols + group_size - 1) / group_size; }

// The earlier of two elements, of which -1 is none.
int64_t earlier(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); }

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
    fault.non_finite = earlier(fault.non_finite, first + first_non_finite(group));
    return -1;
  }
  if (group.amax == 0) return 0;
  const uint16_t scale = f32_to_f16_scale(numerator / divisor);
  if ((scale & 0x7fffu) >= 0x7c00u) {
    fault.overflow = earlier(fault.overflow, first);
    return -1;
  }
  return (scale & 0x7fffu) == 0 ? 0 : scale;  // a quotient that underflowed to -0
}

// The codes of a group, x / scale rounded to nearest, ties to even.
void int8_codes(const Group& group, float scale, int8_t* codes) {
  for (int64_t start = 0; start < group.size; start += kStep) {
    for (int64_t i = 0; i < kStep; ++i) {
      // Ties to even by the magic number: |x / scale| is at most 128, far below 2^22.
      float q = (group.x[start + i] / scale + 12582912.0f) - 12582912.0f;
      q = q < 127.0f ? q : 127.0f;
      q = q > -127.0f ? q : -127.0f;
      codes[start + i] = static_cast<int8_t>(static_cast<int32_t>(q));
    }
  }
}

// Calls one(row, column, g) for every group of bands [begin, end); all rows of a band before the
// next columns, so that each line of codes is written while it is in the first cache.
template <class One>
void for_each_group(const WeightSource& source, int64_t group_size, int64_t begin, int64_t end,
                    One one) {
  for (int64_t band = begin; band < end; ++band) {
    const int64_t last = std::min((band + 1) * kBandRows, source.rows);
    for (int64_t g = 0; g * group_size < source.cols; ++g) {
      for (int64_t row = band * kBandRows; row < last; ++row) one(row, g * group_size, g);
    }
  }
}

}  // namespace

QuantizeFault quantize_int4(const WeightSource& source, int64_t group_size, const int8_t* grid,
                            int64_t begin, int64_t end, uint8_t* codes, uint16_t* scales) noexcept {
  const NearestCode nearest(grid);
  const int64_t n_groups = groups_of(source.cols, group_size);
  const int64_t band_bytes = n_groups * group_size / kInt4LineColumns * kLineBytes;
  QuantizeFault fault;
  Group group;
  uint8_t row_codes[kMaxGroup];
  for_each_group(source, group_size, begin, end, [&](int64_t row, int64_t column, int64_t g) {
    group.load(source, row, column, group_size);
    // The extreme maps to grid[0], the grid's largest magnitude; on a tie the negative one does.
    const float largest = bits_float(group.amax);
    const float extreme = group.negative_amax >= group.amax ? -largest : largest;
    const int32_t half =
        group_scale(source, row, column, group, extreme, static_cast<float>(grid[0]), fault);
    if (half <= 0) return;
    const int64_t band = row / kBandRows, r = row % kBandRows;
    scales[(band * n_groups + g) * kBandRows + r] = static_cast<uint16_t>(half);
    nearest.encode(group, f16_to_f32(static_cast<uint16_t>(half)), row_codes);
    std::fill(row_codes + group.n, row_codes + group_size, uint8_t{0});
    uint8_t* line = codes + band * band_bytes + column / kInt4LineColumns * kLineBytes;
    for (int64_t i = 0; i < group_size; i += kInt4LineColumns, line += kLineBytes) {
      Int4Place::put_row(line, r, row_codes + i);
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
    group.load(source, row, column, group_size);
    const int32_t half =
        group_scale(source, row, column, group, bits_float(group.amax), 127.0f, fault);
    if (half <= 0) return;
    const int64_t band = row / kBandRows, r = row % kBandRows;
    scales[(band * n_groups + g) * kBandRows + r] = static_cast<uint16_t>(half);
    int8_codes(group, f16_to_f32(static_cast<uint16_t>(half)), row_codes);
    int8_t* line = codes + band * band_bytes + column / kInt8LineColumns * kLineBytes;
    for (int64_t i = 0; i < group_size; i += kInt8LineColumns, line += kLineBytes) {
      Int8Place::put_row(line, r, row_codes + i);
    }
  });
  return fault;
}

QuantizeFault quantize_rows_int8(const WeightSource& source, int64_t group_size, int64_t begin,
                                 int64_t end, int8_t* codes, uint16_t* scales) noexcept {
  const int64_t n_groups = groups_of(source.cols, group_size);
  QuantizeFault fault;
  Group group;
  int8_t row_codes[kMaxGroup];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const int64_t column = g * group_size;
      group.load(source, row, column, group_size);
      const int32_t half =
          group_scale(source, row, column, group, bits_float(group.amax), 127.0f, fault);
      if (half <= 0) continue;
      scales[row * n_groups + g] = static_cast<uint16_t>(half);
      int8_codes(group, f16_to_f32(static_cast<uint16_t>(half)), row_codes);
      std::copy(row_codes, row_codes + group.n, codes + row * source.cols + column);
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
