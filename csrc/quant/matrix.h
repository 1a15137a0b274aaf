// A weight matrix as it lies in the file: a plain view, no ownership.
#pragma once

#include <stdint.h>

namespace llama2q {

inline constexpr int64_t kBandRows = 16;
inline constexpr int64_t kLineBytes = 64;
// Columns that one 64-byte line of 16 rows holds.
inline constexpr int64_t kInt4LineColumns = 8;
inline constexpr int64_t kInt8LineColumns = 4;
// Columns that share a scale, at most.
inline constexpr int64_t kMaxGroup = 128;

enum class MatrixKind : int32_t { kInt4, kInt8, kF32, kF16, kBf16 };

struct MatrixView {
  MatrixKind kind;
  int64_t rows;        // out_features
  int64_t cols;        // in_features
  int64_t n_bands;     // ceil(rows / 16)
  int64_t group_size;  // columns per scale; 0 for dense
  int64_t n_groups;    // ceil(cols / group_size); 0 for dense
  const void* codes;   // int4: u8 [n_bands, K/8, 64]; int8: i8 [n_bands, K/4, 64], K = n_groups *
                       // group_size; dense: f32, f16 or bf16 [n_bands, cols, 16]
  const uint16_t* scales;  // f16 [n_bands, n_groups, 16]; null for dense
  int8_t grid[16];         // int4: the value of each code
};

// The token embedding table, row-major.
struct EmbeddingView {
  MatrixKind kind;         // kInt8 or dense
  int64_t rows;            // vocab_size
  int64_t cols;            // dim
  int64_t group_size;      // 0 for dense
  int64_t n_groups;        // ceil(cols / group_size); 0 for dense
  const void* codes;       // i8, f32, f16 or bf16 [rows, cols]
  const uint16_t* scales;  // f16 [rows, n_groups]; null for dense
};

}  // namespace llama2q
