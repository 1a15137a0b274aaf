// The built-in variables of device code. They are those of the thread that runs, and mean nothing
// outside a kernel.
#pragma once

#include "emulation/vector_types.h"

namespace cuda_emulation {

extern uint3 thread_index, block_index;
extern dim3 block_extent, grid_extent;

}  // namespace cuda_emulation

inline const uint3& threadIdx = cuda_emulation::thread_index;
inline const uint3& blockIdx = cuda_emulation::block_index;
inline const dim3& blockDim = cuda_emulation::block_extent;
inline const dim3& gridDim = cuda_emulation::grid_extent;
inline constexpr int warpSize = 32;
