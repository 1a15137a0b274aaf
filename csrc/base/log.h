// Natural logarithm of a float64 by our own code: + - * / on doubles only, so equal on any machine.
#pragma once

namespace llama2q {

// x normal, positive and finite. Relative error of the result below 2^-50, or absolute where the
// result is below 2^-1.
double log_of(double x) noexcept;

}  // namespace llama2q
