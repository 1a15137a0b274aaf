// Rows of activations, what the contract makes of them, and what a matrix makes of that.
#pragma once

#include <cstdint>
#include <vector>

#include "matrices.h"

namespace checks {

std::string describe(const Matrix& m, int64_t n_tokens);

// f32 [n, cols], with groups of zeros, of tiny values and of extremes.
std::vector<float> random_rows(int64_t n, int64_t cols);
// Rows whose groups' largest magnitude is 127, so that they are their own codes, at scale 1.
std::vector<float> integer_rows(int64_t n, int64_t cols, int64_t group_size);
// f32 [n], around 1.
std::vector<float> random_norm(int64_t n);

// A row as csrc/README.md, "The numeric contract", 2 quantizes it.
struct QuantizedRow {
  std::vector<int> codes;     // [n_groups * group_size]
  std::vector<float> scales;  // [n_groups]
};
QuantizedRow quantize(const float* x, int64_t cols, int64_t group_size);
// Of n rows that the matrix multiplies.
std::vector<QuantizedRow> quantize_all(const std::vector<float>& x, int64_t n, const Matrix& m);

// Values, and how far float32 sums in any order may be from them.
struct Outputs {
  std::vector<double> value, tolerance;  // [n, rows]
};
// Of quantized weights: exact dots of `rows`' codes.
Outputs multiply(const Matrix& matrix, const std::vector<QuantizedRow>& rows);
// Of dense weights.
Outputs multiply(const Matrix& matrix, const float* x, int64_t n);
// silu(gate) * up, both [n, 2 * padded] with alternating bands, -> [n, hidden].
Outputs swiglu(const Outputs& both, int64_t n, int64_t hidden);

void expect_close(const std::vector<float>& got, const Outputs& wanted, const std::string& what);
void expect_same(const float* got, const float* wanted, int64_t n, const std::string& what);

// As if the device had so many multiprocessors; its own shared memory, but no more than most have.
llama2q::DeviceLimits limits_of(int64_t n_multiprocessors);

// What a matmul needs besides its arguments.
struct Device {
  llama2q::DeviceLimits limits = limits_of(4);
  int64_t n_kv_heads = 8;
};

// Runs a call over the matrix (or several) and returns y [n, rows of each] of all.
struct Call {
  std::vector<const PlacedMatrix*> matrices;
  std::vector<float> x;  // [n, cols]
  int64_t n = 1;
  std::vector<float> norm;  // may be empty
  llama2q::Epilogue epilogue = llama2q::Epilogue::kStore;
  std::vector<float> y;  // what is there before; may be empty
  int64_t hidden = 0;    // outputs for kSwiglu
  int32_t fault = 0;     // out
};
std::vector<std::vector<float>> run_call(Call& call, const Device& device = {});

inline constexpr float kEps = 1e-5f;
inline constexpr int32_t kFaultCode = 77;

}  // namespace checks
