// Device memory is host memory of exactly the asked size, so that a sanitizer sees what lies
// beyond.
#include <cstdlib>
#include <cstring>

#include "emulation/control.h"
#include "overlap.h"
#include "sanitizers.h"
#include "state.h"

namespace cuda_emulation {

namespace {

constexpr size_t kDeviceAlignment = 256, kHostAlignment = 4096;

size_t rounded(size_t bytes) {
  return (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment;
}

// The allocation that holds the address, or null.
const Allocation* find(const void* address, uintptr_t* first) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto next = runtime().allocations.upper_bound(at);
  if (next == runtime().allocations.begin()) return nullptr;
  --next;
  if (at >= next->first + (next->second.bytes > 0 ? next->second.bytes : 1)) return nullptr;
  *first = next->first;
  return &next->second;
}

enum class Side { kHost, kDevice, kBroken };

// Where the bytes lie; kBroken: partly beyond device memory.
Side side_of(const void* address, size_t bytes) {
  uintptr_t first = 0;
  const Allocation* allocation = find(address, &first);
  if (allocation == nullptr || allocation->kind != MemoryKind::kDevice) return Side::kHost;
  const size_t offset = reinterpret_cast<uintptr_t>(address) - first;
  return bytes <= allocation->bytes - offset ? Side::kDevice : Side::kBroken;
}

cudaError_t check_copy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  const Side target = side_of(to, bytes), source = side_of(from, bytes);
  if (target == Side::kBroken || source == Side::kBroken) return cudaErrorInvalidValue;
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device != (target == Side::kDevice) || from_device != (source == Side::kDevice)) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t allocate(void** address, size_t bytes, MemoryKind kind, size_t alignment) {
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) return report(cudaErrorMemoryAllocation);
  std::memset(memory, 0xff, bytes);
  runtime().allocations[reinterpret_cast<uintptr_t>(memory)] = {bytes, kind, current_device()};
  if (kind == MemoryKind::kDevice) forbid(memory, bytes);
  *address = memory;
  return cudaSuccess;
}

cudaError_t release(void* address, MemoryKind kind) {
  if (address == nullptr) return cudaSuccess;
  const auto found = runtime().allocations.find(reinterpret_cast<uintptr_t>(address));
  if (found == runtime().allocations.end() || found->second.kind != kind) {
    return report(cudaErrorInvalidValue);
  }
  if (kind == MemoryKind::kDevice) {
    runtime().bytes_held[found->second.device] -= rounded(found->second.bytes);
  }
  permit(address, found->second.bytes);
  everything_has_ended();
  runtime().allocations.erase(found);
  std::free(address);
  return cudaSuccess;
}

}  // namespace

DeviceAccess::DeviceAccess() {
  if (!watches_addresses() || depth_++ > 0) return;
  for (const auto& [address, allocation] : runtime().allocations) {
    permit(reinterpret_cast<void*>(address), allocation.bytes);
  }
}

DeviceAccess::~DeviceAccess() {
  if (!watches_addresses() || --depth_ > 0) return;
  for (const auto& [address, allocation] : runtime().allocations) {
    if (allocation.kind != MemoryKind::kDevice) continue;
    forbid(reinterpret_cast<void*>(address), allocation.bytes);
  }
}

void free_device_memory(int device) {
  everything_has_ended();
  auto& allocations = runtime().allocations;
  for (auto it = allocations.begin(); it != allocations.end();) {
    if (it->second.device == device && it->second.kind == MemoryKind::kDevice) {
      permit(reinterpret_cast<void*>(it->first), it->second.bytes);
      std::free(reinterpret_cast<void*>(it->first));
      it = allocations.erase(it);
    } else {
      ++it;
    }
  }
  runtime().bytes_held[device] = 0;
}

}  // namespace cuda_emulation

using namespace cuda_emulation;

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  CUDA_EMULATION_ENTER();
  if (!is_device(current_device())) return report(cudaErrorNoDevice);
  *total_bytes = machine().memory_bytes;
  *free_bytes = machine().memory_bytes - runtime().bytes_held[current_device()];
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
  CUDA_EMULATION_ENTER();
  if (!is_device(current_device())) return report(cudaErrorNoDevice);
  if (const cudaError_t error = refuse_while_capturing()) return error;
  size_t& held = runtime().bytes_held[current_device()];
  if (bytes > machine().memory_bytes || rounded(bytes) > machine().memory_bytes - held) {
    return report(cudaErrorMemoryAllocation);
  }
  const cudaError_t error = allocate(address, bytes, MemoryKind::kDevice, kDeviceAlignment);
  if (error == cudaSuccess) held += rounded(bytes);
  return error;
}

cudaError_t cudaFree(void* address) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  return release(address, MemoryKind::kDevice);
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
  return cudaHostAlloc(address, bytes, cudaHostAllocDefault);
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  if (!machine().pinning) return report(cudaErrorMemoryAllocation);
  return allocate(address, bytes, MemoryKind::kPinned, kHostAlignment);
}

cudaError_t cudaFreeHost(void* address) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  return release(address, MemoryKind::kPinned);
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  if (address == nullptr || bytes == 0) return report(cudaErrorInvalidValue);
  if (!machine().pinning) return report(cudaErrorMemoryAllocation);
  uintptr_t first = 0;
  if (find(address, &first) != nullptr) return report(cudaErrorHostMemoryAlreadyRegistered);
  runtime().allocations[reinterpret_cast<uintptr_t>(address)] = {bytes, MemoryKind::kRegistered,
                                                                 current_device()};
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* address) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  const auto found = runtime().allocations.find(reinterpret_cast<uintptr_t>(address));
  if (found == runtime().allocations.end() || found->second.kind != MemoryKind::kRegistered) {
    return report(cudaErrorHostMemoryNotRegistered);
  }
  runtime().allocations.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  CUDA_EMULATION_ENTER();
  if (width == 0 || height == 0) return cudaSuccess;
  if (width > to_pitch || width > from_pitch) return report(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    everything_has_ended();
    auto* target = static_cast<unsigned char*>(to);
    const auto* source = static_cast<const unsigned char*>(from);
    for (size_t row = 0; row < height; ++row, target += to_pitch, source += from_pitch) {
      if (const cudaError_t error = check_copy(target, source, width, kind)) return report(error);
      std::memcpy(target, source, width);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  CUDA_EMULATION_ENTER();
  if (const cudaError_t error = refuse_while_capturing()) return error;
  return cudaMemsetAsync(address, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  CUDA_EMULATION_ENTER();
  if (bytes == 0) return cudaSuccess;
  return enqueue(stream, [=] {
    everything_has_ended();
    if (side_of(address, bytes) != Side::kDevice) return report(cudaErrorInvalidValue);
    std::memset(address, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceReset() {
  const std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  free_device_memory(current_device());
  return cudaSuccess;
}

void cuda_emulation::reset() {
  const std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  for (int device = 0; device < 64; ++device) free_device_memory(device);
  for (auto& [handle, stream] : runtime().streams) delete stream;
  runtime().streams.clear();
  runtime().broken = false;
  runtime().failure.clear();
  current_device() = 0;
  static_cast<void>(cudaGetLastError());
}
