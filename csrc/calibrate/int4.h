// int4 quantizers that choose scales by the errors they cause.
#pragma once

#include <cstdint>

#include "backend/thread_pool.h"
#include "kernels/args.h"
#include "quant/quantize.h"

namespace llama2q {

// Where codes and scales go.
struct Int4Output {
  uint8_t* codes;    // u8 [n_bands, K/8, 64], zeroed
  uint16_t* scales;  // f16 [n_bands, K/G, 16], zeroed
};

struct Int4Matrix {
  WeightSource source;  // [rows, cols]
  int64_t group_size;
  const int8_t* grid;  // i8 [16], ascending, the largest magnitude first
};

// Bands [begin, end), each group's scale searched for by itself. importance f32 [cols] weighs the
// squared errors of the columns; null for equal weights.
QuantizeFault search_int4(const KernelTable& table, const Int4Matrix& matrix,
                          const float* importance, int64_t begin, int64_t end,
                          const Int4Output& output) noexcept;

}  // namespace llama2q
