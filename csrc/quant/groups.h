// One group of a row while it is quantized, in loops of constant length that any compiler turns
// into vector code of its baseline.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/types.h"
#include "quant/matrix.h"
#include "quant/quantize.h"

namespace llama2q {

// Every group size is a multiple of it.
inline constexpr int64_t kStep = 32;

// f16 to float as f16_to_f32, without branches; NaN loses its payload.
inline float f16_to_f32_select(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t subnormal =
      float_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t finite = magnitude < 0x400u ? subnormal : normal;
  return bits_float(sign | (magnitude < 0x7c00u ? finite : 0x7f800000u));
}

struct Group {
  alignas(64) float x[kMaxGroup];  // the weights, zeros behind the row's end
  int64_t size;                    // a multiple of kStep
  int64_t n;                       // elements that the row has
  uint32_t amax;                   // bits of the largest magnitude
  uint32_t negative_amax;          // the same, of negative elements alone; 0 if there is none

  void load(const WeightSource& source, int64_t row, int64_t column, int64_t group_size) {
    size = group_size;
    n = std::min(group_size, source.cols - column);
    const int64_t first = row * source.cols + column;
    switch (source.type) {
      case SourceType::kF32:
        widen(static_cast<const float*>(source.data) + first, [](float v) { return v; });
        break;
      case SourceType::kF16:
        widen(static_cast<const uint16_t*>(source.data) + first, f16_to_f32_select);
        break;
      case SourceType::kBf16:
        widen(static_cast<const uint16_t*>(source.data) + first, bf16_to_f32);
        break;
    }
    int32_t largest = 0, negative = 0;
    for (int64_t i = 0; i < size; ++i) {
      const int32_t bits = static_cast<int32_t>(float_bits(x[i]));
      const int32_t magnitude = bits & 0x7fffffff;
      const int32_t below = magnitude & (bits >> 31);
      largest = magnitude > largest ? magnitude : largest;
      negative = below > negative ? below : negative;
    }
    amax = static_cast<uint32_t>(largest);
    negative_amax = static_cast<uint32_t>(negative);
  }

 private:
  template <class Element, class Widen>
  void widen(const Element* p, Widen to_float) {
    if (n < size) {
      for (int64_t i = 0; i < size; ++i) x[i] = i < n ? to_float(p[i]) : 0.0f;
      return;
    }
    for (int64_t start = 0; start < size; start += kStep) {
      for (int64_t i = 0; i < kStep; ++i) x[start + i] = to_float(p[start + i]);
    }
  }
};

// The code of a quotient on a grid: the number of midpoints between grid values that lie below it.
//
// The grid holds integers, so twice a midpoint m is one, and m < y means 2 m < ceil(2 y): a table
// over these integers answers all 15 comparisons.
class NearestCode {
 public:
  explicit NearestCode(const int8_t* grid) {
    for (int32_t twice = -kReach; twice <= kReach; ++twice) {
      int code = 0;
      for (int m = 0; m < 15; ++m) code += grid[m] + grid[m + 1] < twice ? 1 : 0;
      codes_[twice + kReach] = static_cast<uint8_t>(code);
    }
  }

  // codes[i] for x[i] / scale, i < group.size.
  void encode(const Group& group, float scale, uint8_t* codes) const {
    for (int64_t start = 0; start < group.size; start += kStep) {
      int32_t index[kStep];
      for (int64_t i = 0; i < kStep; ++i) {
        const float y = group.x[start + i] / scale;
        float twice = y + y;
        twice = twice < kLimit ? twice : kLimit;
        twice = twice > -kLimit ? twice : -kLimit;
        const int32_t whole = static_cast<int32_t>(twice);
        index[i] = whole + (static_cast<float>(whole) < twice ? 1 : 0) + kReach;
      }
      for (int64_t i = 0; i < kStep; ++i) codes[start + i] = codes_[index[i]];
    }
  }

 private:
  static constexpr int32_t kReach = 256;  // beyond twice any midpoint of int8 values
  static constexpr float kLimit = 256.0f;
  uint8_t codes_[2 * kReach + 1];
};

}  // namespace llama2q
