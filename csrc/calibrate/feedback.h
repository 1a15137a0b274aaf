// Rounding a matrix to int4 so that its outputs change least: each column's error is handed on to
// the columns that are still to be rounded (GPTQ, Frantar et al. 2022, in the form of LDLQ, Chee et
// al. 2023, which needs no inverse).
#pragma once

#include "calibrate/int4.h"

namespace llama2q {

// The inputs x that the matrix was calibrated with, by way of H = sum of x x^T, damped.
struct Calibration {
  // f32 [cols, cols]: H = L D L^T; L below the diagonal, D on it, L^T above.
  const float* factors;
  const float* importance;  // f32 [cols]: what the diagonal of H was
  // f32 [cols, rows], or null: sum of x d^T, d what the outputs should be beyond W x.
  const float* correction;
};

inline constexpr int64_t kFeedbackRows = 192;  // of a panel

// Floats of scratch of a thread, aligned to 64 bytes.
int64_t feedback_scratch(const Int4Matrix& matrix);

// The rows of panel `index`, kFeedbackRows of them. With v = correction^T (L^T)^-1 D^-1 and e = w -
// value, columns from the last to the first:
//   value[j] = round(w[j] + v[j] + sum over i > j of e[i] L[i, j]),
// which minimizes each term of (w + correction^T H^-1 - value) H (...)^T in turn. The order of the
// sums is written: the bits do not depend on panels or instruction sets. A fault's place is the
// first element of the band's group.
QuantizeFault feed_back_panel(const KernelTable& table, const Int4Matrix& matrix,
                              const Calibration& calibration, int64_t index,
                              const Int4Output& output, float* scratch) noexcept;

}  // namespace llama2q
