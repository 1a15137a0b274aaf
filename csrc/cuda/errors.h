// What the CUDA runtime refused.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace llama2q::cuda {

struct CudaError : std::runtime_error {
  CudaError(cudaError_t error, const std::string& what)
      : std::runtime_error(what + ": " + cudaGetErrorString(error) + " (CUDA error " +
                           std::to_string(static_cast<int>(error)) + ")"),
        code(error) {}

  cudaError_t code;
};

// A refused call leaves its error behind for cudaGetLastError(): taken here, so that it is reported
// once.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw CudaError(error, what);
}

}  // namespace llama2q::cuda
