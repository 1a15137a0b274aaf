// What the emulated runtime remembers. One lock for all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "emulation/runtime_api.h"

struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> nodes;
};

struct CUgraphExec_st {
  CUgraph_st graph;
  int device;
};

struct CUstream_st {
  int device;
  bool capturing = false, invalidated = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  CUgraph_st recorded;
};

namespace cuda_emulation {

enum class MemoryKind { kDevice, kPinned, kRegistered };

struct Allocation {
  size_t bytes;
  MemoryKind kind;
  int device;
};

struct Runtime {
  std::recursive_mutex mutex;
  std::map<uintptr_t, Allocation> allocations;  // by first byte
  std::map<int, size_t> bytes_held;             // by device
  std::map<std::pair<int, const void*>, size_t> allowed_shared;
  std::map<cudaStream_t, CUstream_st*> streams;
  // After a launch that failed: as on a device, nothing works any more.
  bool broken = false;
  std::string failure;  // of the last launch that failed
  int64_t launches = 0;
};

Runtime& runtime();

int& current_device();  // of the host thread
// Remembers an error for cudaGetLastError().
cudaError_t report(cudaError_t error);

// Runs the work, or records it if the stream captures.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work);
// An error where some stream captures in a mode that forbids the call; ends that capture.
cudaError_t refuse_while_capturing();
bool is_device(int device);

// While one lives, device memory may be touched: AddressSanitizer refuses the host otherwise.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  static inline int depth_ = 0;
};

}  // namespace cuda_emulation

// What every call but those that only ask for errors begins with.
#define CUDA_EMULATION_ENTER()                                                       \
  const std::lock_guard<std::recursive_mutex> lock(cuda_emulation::runtime().mutex); \
  if (cuda_emulation::runtime().broken) return cuda_emulation::report(cudaErrorLaunchFailure)
