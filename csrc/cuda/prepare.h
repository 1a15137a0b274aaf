// Activations for the kernels that take them quantized (cuda/layout.h), and the norm alone.
#pragma once

#include "cuda/launch.h"
#include "cuda/layout.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {

// Deals `memory` (activation_bytes(), aligned to 16 bytes) out.
Activations place_activations(int64_t n_tokens, int64_t width, int64_t cols, int64_t group_size,
                              void* memory);

// Rows of x, normed if `norm` is not null, to `out`.
void quantize_rows(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
                   int64_t group_size, const float* norm, float eps, const Activations& out,
                   FaultSite fault);

// What quantize_rows would report, of rows that dense weights multiply as they are.
void check_rows(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
                FaultSite fault);

}  // namespace llama2q::cuda
