// sin and cos of a float64 angle by our own code: + - * on doubles only, so equal on any machine.
#pragma once

namespace llama2q {

struct SinCos {
  double sin;
  double cos;
};

// angle >= 0, in radians, below 2^31. Error below 1e-15 for angles up to 1e6, which leaves the
// rounding to float32 correct but for ties closer than that.
SinCos sin_cos(double angle) noexcept;

}  // namespace llama2q
