// Sums over a distribution, in the written order of the numeric contract.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace llama2q {

// Sum in float64 of the masses that are at least `least`: eight running sums by id mod 8, then
// lanes i and i + 4, 2, 1. mass f32 [n].
inline double sum_masses(const float* mass, int64_t n, float least) {
  std::array<double, 8> sums{};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) {
      const float value = mass[i + static_cast<int64_t>(lane)];
      sums[lane] += static_cast<double>(value >= least ? value : 0.0f);
    }
  }
  for (size_t lane = 0; i < n; ++i, ++lane) {
    sums[lane] += static_cast<double>(mass[i] >= least ? mass[i] : 0.0f);
  }
  for (size_t half = 4; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

// Whether any of 16 values is at least `least`; without a branch, so that it is vectorized.
inline bool any_of_16(const float* values, float least) {
  int found = 0;
  for (int i = 0; i < 16; ++i) found |= values[i] >= least ? 1 : 0;
  return found != 0;
}

// The first index whose value is at least `least`, which there is.
inline int64_t first_of(const float* values, int64_t n, float least) {
  int64_t i = 0;
  while (i + 16 <= n && !any_of_16(values + i, least)) i += 16;
  while (values[i] < least) ++i;
  return i;
}

}  // namespace llama2q
