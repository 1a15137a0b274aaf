// Errors, devices, settings.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulation/control.h"
#include "state.h"

namespace cuda_emulation {

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int device_of_thread = 0;

uint64_t number_of(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::strtoull(text, nullptr, 0);
}

Machine machine_of_environment() {
  Machine m;
  m.n_devices = static_cast<int>(number_of("CUDA_EMULATION_DEVICES", 1));
  m.memory_bytes = number_of("CUDA_EMULATION_MEMORY", m.memory_bytes);
  m.pinning = number_of("CUDA_EMULATION_PINNING", 1) != 0;
  if (const char* text = std::getenv("CUDA_EMULATION_CAPABILITY")) {
    int major = 0, minor = 0;
    if (std::sscanf(text, "%d.%d", &major, &minor) == 2) {
      m.major = major;
      m.minor = minor;
    }
  }
  return m;
}

}  // namespace

Runtime& runtime() {
  static Runtime* instance = new Runtime;  // outlives what is destroyed at the process's end
  return *instance;
}

Machine& machine() {
  static Machine instance = machine_of_environment();
  return instance;
}

uint64_t& seed() {
  static uint64_t instance = number_of("CUDA_EMULATION_SEED", 0);
  return instance;
}

size_t Machine::most_shared_bytes() const {
  const int capability = 10 * major + minor;
  if (capability < 80) return 64 * 1024;
  if (capability == 80 || capability == 87) return 163 * 1024;
  if (capability == 90 || capability / 10 == 10) return 227 * 1024;
  return 99 * 1024;
}

int64_t launches() { return runtime().launches; }

int& current_device() { return device_of_thread; }

bool is_device(int device) { return device >= 0 && device < machine().n_devices; }

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace cuda_emulation

using cuda_emulation::current_device;
using cuda_emulation::is_device;
using cuda_emulation::machine;
using cuda_emulation::report;
using cuda_emulation::runtime;

namespace {

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorOperatingSystem, "cudaErrorOperatingSystem",
     "OS call failed or operation not supported on this OS"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
};

const ErrorText* find(cudaError_t error) {
  for (const ErrorText& e : kErrors) {
    if (e.error == error) return &e;
  }
  return nullptr;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  const std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (error == cudaErrorLaunchFailure && !runtime().failure.empty()) {
    thread_local std::string text;
    text = "unspecified launch failure: " + runtime().failure;
    return text.c_str();
  }
  const ErrorText* found = find(error);
  return found == nullptr ? "unrecognized error code" : found->text;
}

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* found = find(error);
  return found == nullptr ? "unrecognized error code" : found->name;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulation::last_error;
  cuda_emulation::last_error = runtime().broken ? cudaErrorLaunchFailure : cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return cuda_emulation::last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  CUDA_EMULATION_ENTER();
  *count = machine().n_devices;
  return report(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  CUDA_EMULATION_ENTER();
  if (!is_device(device)) return report(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  CUDA_EMULATION_ENTER();
  if (machine().n_devices == 0) return report(cudaErrorNoDevice);
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  CUDA_EMULATION_ENTER();
  if (!is_device(device)) return report(cudaErrorInvalidDevice);
  cudaDeviceProp p{};
  std::snprintf(p.name, sizeof p.name, "emulated device %d", device);
  p.totalGlobalMem = machine().memory_bytes;
  p.sharedMemPerBlock = 48 * 1024;
  p.sharedMemPerBlockOptin = machine().most_shared_bytes();
  p.sharedMemPerMultiprocessor = machine().most_shared_bytes() + 1024;
  p.regsPerBlock = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.major = machine().major;
  p.minor = machine().minor;
  p.multiProcessorCount = machine().n_multiprocessors;
  p.pciBusID = device + 1;
  p.memoryBusWidth = 256;
  p.l2CacheSize = 4 << 20;
  p.hostRegisterSupported = machine().pinning;
  p.unifiedAddressing = 1;
  *properties = p;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p{};
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrClockRate:
      *value = 1'500'000;  // kHz
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrIntegrated:
      *value = 0;
      break;
    case cudaDevAttrMemoryClockRate:
      *value = 7'000'000;  // kHz
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = p.memoryBusWidth;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrHostRegisterSupported:
      *value = p.hostRegisterSupported;
      break;
    default:
      return report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine().n_devices == 0 ? 0 : 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
