#include "base/trig.h"

#include <cstdint>

namespace llama2q {
namespace {

// pi/2 in three parts; the first two have 33 bits, so that n * part is exact for n < 2^20.
constexpr double kTwoOverPi = 0.63661977236758134308;
constexpr double kHalfPi1 = 0x1.921fb544p+0;
constexpr double kHalfPi2 = 0x1.0b4611a6p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;

// Taylor series on [-pi/4, pi/4]: the first term left out is below 1e-18.
double sin_series(double r) noexcept {
  const double z = r * r;
  double p = -1.0 / 121645100408832000.0;  // 1/19!
  p = p * z + 1.0 / 355687428096000.0;     // 1/17!
  p = p * z - 1.0 / 1307674368000.0;       // 1/15!
  p = p * z + 1.0 / 6227020800.0;          // 1/13!
  p = p * z - 1.0 / 39916800.0;            // 1/11!
  p = p * z + 1.0 / 362880.0;              // 1/9!
  p = p * z - 1.0 / 5040.0;                // 1/7!
  p = p * z + 1.0 / 120.0;                 // 1/5!
  p = p * z - 1.0 / 6.0;                   // 1/3!
  return r + r * (z * p);
}

double cos_series(double r) noexcept {
  const double z = r * r;
  double p = 1.0 / 2432902008176640000.0;  // 1/20!
  p = p * z - 1.0 / 6402373705728000.0;    // 1/18!
  p = p * z + 1.0 / 20922789888000.0;      // 1/16!
  p = p * z - 1.0 / 87178291200.0;         // 1/14!
  p = p * z + 1.0 / 479001600.0;           // 1/12!
  p = p * z - 1.0 / 3628800.0;             // 1/10!
  p = p * z + 1.0 / 40320.0;               // 1/8!
  p = p * z - 1.0 / 720.0;                 // 1/6!
  p = p * z + 1.0 / 24.0;                  // 1/4!
  return 1.0 - 0.5 * z + z * (z * p);
}

}  // namespace

SinCos sin_cos(double angle) noexcept {
  const int64_t n = static_cast<int64_t>(angle * kTwoOverPi + 0.5);
  const double quarter = static_cast<double>(n);
  const double r = ((angle - quarter * kHalfPi1) - quarter * kHalfPi2) - quarter * kHalfPi3;
  const double s = sin_series(r);
  const double c = cos_series(r);
  switch (n & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

}  // namespace llama2q
