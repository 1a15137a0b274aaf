#include "base/log.h"

#include <bit>
#include <cstdint>

namespace llama2q {

// x = m 2^e with m in [1/sqrt2, sqrt2); log m = 2 atanh(f) with f = (m - 1) / (m + 1), |f| <
// 0.1716, by its series to f^23: what is left out is below 2^-64. ln 2 is two parts, the first of
// which times e is exact.
double log_of(double x) noexcept {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  const double f = (m - 1.0) / (m + 1.0);
  const double square = f * f;
  double series = 0.0;
  for (int power = 23; power >= 3; power -= 2) {
    series = (series + 1.0 / static_cast<double>(power)) * square;
  }
  const double log_m = 2.0 * f + 2.0 * f * series;
  const double e = static_cast<double>(exponent);
  return e * 0x1.62e42fefa3800p-1 + (e * 0x1.ef35793c76730p-45 + log_m);
}

}  // namespace llama2q
