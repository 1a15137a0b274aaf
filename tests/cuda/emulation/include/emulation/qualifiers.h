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

// Blocks run one after the other, so that shared variables can be static ones. They lie in sections
// of their own, which every block finds filled with NaN bytes; "used", because a compiler must not
// conclude from the stores that it sees. GCC forgets a section attribute when it instantiates a
// template (bug 41091), but not this one. In a function of external linkage that may be defined
// more than once the assembler warns: kernels have internal linkage.
#if defined(__clang__)
#define __shared__ static __attribute__((used, section(".noinit")))
#else
#define __shared__ static __attribute__((used, noinit))
#endif
