// What a test sets of the emulated machine. The environment gives the first values:
// CUDA_EMULATION_SEED, CUDA_EMULATION_DEVICES, CUDA_EMULATION_MEMORY (bytes of a device),
// CUDA_EMULATION_CAPABILITY ("9.0"), CUDA_EMULATION_PINNING (0: refused).
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

struct Machine {
  int n_devices = 1;
  size_t memory_bytes = size_t{1} << 30;  // of a device
  int major = 8, minor = 6;               // compute capability
  int n_multiprocessors = 16;
  bool pinning = true;  // may host memory be pinned?

  // Bytes of dynamic shared memory that a kernel may be allowed: CUDA C Programming Guide,
  // "Technical Specifications per Compute Capability".
  size_t most_shared_bytes() const;
};

// To be changed before devices are used, or after reset().
Machine& machine();

// Order of fibers and blocks. 0: ascending; others draw it. Takes effect at the next launch.
uint64_t& seed();

// As if the process began: no error, nothing allocated, device 0, no stream. What kernels were
// allowed stays: callers remember it.
void reset();

// Launches that ran so far, those of replayed graphs included.
int64_t launches();

}  // namespace cuda_emulation
