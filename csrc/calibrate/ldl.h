// H = L D L^T of a symmetric positive definite matrix, in place, on all cores.
#pragma once

#include <functional>

#include "backend/thread_pool.h"
#include "kernels/args.h"

namespace llama2q {

// Replaces the lower triangle of h, f32 [n, n], by L (unit lower, its ones left out) and D on the
// diagonal; what is above is neither read nor written. kernels/ldl.h says what an element is.
// Right- looking: blocks of kLdlBlock columns, then the rows beside them, then what is left of the
// matrix. Returns the index of the first pivot that is not greater than 0 or not finite, and leaves
// h unfinished there, or -1.
//
// Extra memory: 2 * kLdlBlock * n floats (28 MiB for n = 28672) and 0.8 MiB per thread. The caller
// holds a FloatEnv. `interruption` is called between blocks; what it throws ends the work.
int64_t ldl(const KernelTable& table, ThreadPool& pool, float* h, int64_t n,
            const std::function<void()>& interruption);

// Copies what is below the diagonal of h, f32 [n, n], above it.
void mirror_lower(ThreadPool& pool, float* h, int64_t n);

}  // namespace llama2q
