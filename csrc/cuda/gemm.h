// Many tokens, on the tensor cores.
#pragma once

#include "cuda/layout.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {

struct GemmMatrix {
  const uint4* codes;
  const uint32_t* scales;
  CodeTable table;
  Codes kind;
  float* y;        // f32 [n_tokens, y_rows]
  int32_t y_rows;  // outputs of a token
  int32_t n_bands;
};

struct GemmArgs {
  GemmMatrix matrices[kMostMatrices];
  int32_t n_matrices;
  int32_t n_units;  // of columns (cuda/layout.h)
  int32_t n_tokens;
  Epilogue epilogue;
  Activations input;
  // Few blocks share K out: their sums, and how many have come. gemm() sets n_splits.
  float* partial;     // f32 [MatmulWork::partial / 4]
  uint32_t* tickets;  // u32 [gemm_tickets()]: 0 at first, and after each launch
  int32_t n_splits;
};

void gemm(const Stream& stream, const DeviceLimits& limits, int64_t group_size, GemmArgs args);

}  // namespace llama2q::cuda
