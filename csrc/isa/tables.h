// The kernel tables. A build holds those whose LLAMA2Q_HAVE_... is defined; only they may be used.
#pragma once

#include "kernels/args.h"

namespace llama2q {

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonI8mmKernels;

}  // namespace llama2q
