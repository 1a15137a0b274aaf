// Starts kernels: what <<<>>> does, with attributes, checks and an error that names the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/errors.h"

namespace llama2q::cuda {

struct Stream {
  cudaStream_t handle = nullptr;
  // Launches may start before the one before has ended (compute capability >= 9.0): kernels say
  // wait_for_previous().
  bool programmatic = false;
};

// Any kernel may have 48 KiB of shared memory, its static variables included; more must be allowed
// kernel by kernel. From this many dynamic bytes on it is.
inline constexpr size_t kAllowedFromBytes = 16 * 1024;

// Allows the kernel that much dynamic shared memory on the current device, once.
inline cudaError_t allow_shared_bytes(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{device, kernel}];
  if (bytes <= most) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

// "kernel NAME, grid (x, y, z), block (x, y, z), n bytes of shared memory"; the name is mangled.
inline std::string describe_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const auto extent = [](dim3 e) {
    // "(" as a string: GCC 12 warns of an insertion before a temporary (bug 105651).
    return std::string("(") + std::to_string(e.x) + ", " + std::to_string(e.y) + ", " +
           std::to_string(e.z) + ")";
  };
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess || name == nullptr) name = "of unknown name";
  return std::string("kernel ") + name + ", grid " + extent(grid) + ", block " + extent(block) +
         ", " + std::to_string(shared_bytes) + " bytes of shared memory";
}

// `arguments` convert to the kernel's parameters.
template <typename... Parameters, typename... Arguments>
void launch(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Arguments&&... arguments) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  cudaLaunchAttribute programmatic{};
  programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  programmatic.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = &programmatic;
  config.numAttrs = stream.programmatic ? 1 : 0;
  cudaError_t error = cudaSuccess;
  if (shared_bytes >= kAllowedFromBytes) error = allow_shared_bytes(address, shared_bytes);
  if (error == cudaSuccess) {
    error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  }
  if (error != cudaSuccess) {
    check(error, describe_launch(address, grid, block, shared_bytes).c_str());
  }
}

}  // namespace llama2q::cuda
