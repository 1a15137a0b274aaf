// CUDA's declaration specifiers.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Blocks run one after the other, so that shared variables can be static ones. They lie in a
// section of their own, which every block finds filled with NaN bytes. (A function that has
// external linkage and may be defined more than once cannot hold any: give it internal linkage.)
#define __shared__ static __attribute__((section("cuda_shared")))
