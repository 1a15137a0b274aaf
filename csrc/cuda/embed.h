// Rows of the embedding table, on the device.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"
#include "quant/matrix.h"

namespace llama2q::cuda {

// Rows token_ids i32 [n] of the table -> x f32 [n, table.cols]: the CPU's bits. Device memory.
void embed(const Stream& stream, const EmbeddingView& table, const int32_t* token_ids, int64_t n,
           float* x);

}  // namespace llama2q::cuda
