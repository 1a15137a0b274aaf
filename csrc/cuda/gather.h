// Rows of f32, picked by index.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"

namespace llama2q::cuda {

// Rows indices i32 [n] of x f32 [., width] -> y f32 [n, width]. Device memory.
void gather(const Stream& stream, const float* x, const int32_t* indices, int64_t n, int64_t width,
            float* y);

}  // namespace llama2q::cuda
