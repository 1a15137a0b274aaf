// Weight matrices for the checks: random, in the file's layout, and on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/matmul.h"
#include "harness.h"
#include "quant/matrix.h"

namespace checks {

// Which codes; kLookup has the published values of IQ4_NL, kUniform code - 8.
enum class Kind { kLookup, kUniform, kInt8, kF32, kF16, kBf16 };

inline constexpr Kind kQuantized[] = {Kind::kLookup, Kind::kUniform, Kind::kInt8};
inline constexpr Kind kDense[] = {Kind::kF32, Kind::kF16, Kind::kBf16};

const char* name_of(Kind kind);

struct Matrix {
  Kind kind = Kind::kLookup;
  int64_t rows = 0, cols = 0;
  int64_t group_size = 0, n_groups = 0;  // 0 for dense
  std::vector<uint8_t> codes;    // [rows, n_groups * group_size]: int4's codes, int8's bytes
  std::vector<uint16_t> scales;  // f16 [rows, n_groups]
  std::vector<double> dense;     // [rows, cols]

  bool quantized() const { return group_size != 0; }
  int64_t n_bands() const { return (rows + llama2q::kBandRows - 1) / llama2q::kBandRows; }
  int64_t padded_cols() const { return n_groups * group_size; }
  // The value that a code stands for.
  int value(int64_t row, int64_t col) const;
  double scale(int64_t row, int64_t group) const;
  // As the file has it; null pointers.
  llama2q::MatrixView view() const;
  // The file's bytes: codes or dense bands, and scales.
  std::vector<uint8_t> file_codes() const;
  std::vector<uint16_t> file_scales() const;
};

// group_size is ignored for dense kinds.
Matrix random_matrix(Kind kind, int64_t rows, int64_t cols, int64_t group_size);
// All scales 1, so that outputs are integers.
Matrix integer_matrix(Kind kind, int64_t rows, int64_t cols, int64_t group_size);
// w1 and w3, bands alternating: rows of the result = 2 * 16 * n_bands.
Matrix interleaved(const Matrix& gate, const Matrix& up);

// On the device, permuted in two parts.
class PlacedMatrix {
 public:
  explicit PlacedMatrix(const Matrix& matrix);
  const llama2q::MatrixView& view() const { return view_; }
  // Codes, then scales, as they lie on the device.
  std::vector<uint8_t> read() const { return memory_.read(); }

 private:
  Buffer<uint8_t> memory_;
  llama2q::MatrixView view_;
};

llama2q::cuda::Stream test_stream();

}  // namespace checks
