// Weights as they were trained: bf16, f16 or f32, times activations in f32.
#pragma once

#include "cuda/layout.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {

struct DenseArgs {
  MatrixKind kind;      // kF32, kF16 or kBf16
  const void* weights;  // [n_bands, cols, 16]
  int32_t cols;
  int32_t n_sets;  // bands, for kSwiglu pairs of them
  const float* x;  // f32 [n_tokens, cols]
  int32_t n_tokens;
  Epilogue epilogue;
  float* y;        // f32 [n_tokens, y_rows]
  int32_t y_rows;  // outputs of a token
};

void dense(const Stream& stream, const DenseArgs& args);

}  // namespace llama2q::cuda
