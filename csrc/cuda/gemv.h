// Few tokens: one pass over the weights. Steps of any number of tokens sum in the same order.
#pragma once

#include "cuda/append.h"
#include "cuda/layout.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {

struct GemvMatrix {
  const uint4* codes;
  const uint32_t* scales;
  CodeTable table;
  float* y;        // f32 [n_tokens, y_rows]
  int32_t y_rows;  // outputs of a token
  int32_t n_sets;  // of bands that are finished together: one, for kSwiglu a pair
  Role role;
};

// Neighbouring matrices of one kind, and the blocks that share them.
struct GemvSegment {
  Codes codes;
  int32_t first_matrix;
  int32_t n_sets;
  int32_t n_blocks;
};

struct GemvArgs {
  GemvMatrix matrices[kMostMatrices];
  GemvSegment segments[kMostMatrices];
  int32_t n_segments;
  int32_t n_units;  // of columns (cuda/layout.h)
  int32_t n_tokens;
  int32_t set_bands;
  Epilogue epilogue;
  // One token as it is, in place of `input`.
  const float* x;     // f32 [cols]
  const float* norm;  // f32 [cols], or null
  float eps;
  int32_t cols;
  Activations input;  // width 1, 8 or 16
  AppendTo append;    // for roles other than kPlain
  uint32_t* tickets;  // u32 [gemv_tickets()]: 0 at first, and after each launch
  FaultSite fault;
};

// Starts it; the segments' n_blocks are filled in here. Tokens: args.input's tiles, or one.
void gemv(const Stream& stream, const DeviceLimits& limits, int64_t group_size, GemvArgs args);

}  // namespace llama2q::cuda
