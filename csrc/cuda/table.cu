// The table that the core finds in this library: every function catches what is thrown below it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "cuda/device.h"
#include "cuda/ops.h"
#include "cuda/pass.h"
#include "cuda/table.h"

namespace llama2q {

namespace {

using cuda::check;
using cuda::CudaError;

int report(DeviceFailure* failure, DeviceFault fault, const char* text) {
  failure->fault = fault;
  std::snprintf(failure->text, sizeof failure->text, "%s", text);
  return 1;
}

DeviceFault fault_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return DeviceFault::kOutOfMemory;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
      return DeviceFault::kNoDevice;
    case cudaErrorInsufficientDriver:
      return DeviceFault::kOldDriver;
    default:
      return DeviceFault::kOther;
  }
}

template <class Body>
int guarded(DeviceFailure* failure, Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const CudaError& error) {
    return report(failure, fault_of(error.code), error.what());
  } catch (const std::bad_alloc&) {
    return report(failure, DeviceFault::kOutOfMemory, "the host has no memory left");
  } catch (const std::exception& error) {
    return report(failure, DeviceFault::kOther, error.what());
  }
}

int count(int32_t* n, DeviceFailure* failure) {
  return guarded(failure, [&] {
    int found = 0;
    const cudaError_t error = cudaGetDeviceCount(&found);
    if (error != cudaErrorNoDevice) check(error, "counting GPUs");
    static_cast<void>(cudaGetLastError());
    *n = found;
  });
}

// By clock (kHz) and width (bits) of the memory, two transfers a clock.
int64_t bytes_per_second(int32_t index) {
  int clock = 0, width = 0;
  if (cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, index) != cudaSuccess ||
      cudaDeviceGetAttribute(&width, cudaDevAttrGlobalMemoryBusWidth, index) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return int64_t{2} * clock * 1000 * (width / 8);
}

int describe(int32_t index, DeviceInfo* info, DeviceFailure* failure) {
  return guarded(failure, [&] {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
    check(cudaSetDevice(index), "choosing the GPU");
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the GPU's free memory");
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    *info = {};
    std::memcpy(info->name, properties.name, sizeof info->name - 1);
    info->total_bytes = static_cast<int64_t>(total_bytes);
    info->free_bytes = static_cast<int64_t>(free_bytes);
    info->major = properties.major;
    info->minor = properties.minor;
    info->n_multiprocessors = properties.multiProcessorCount;
    info->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    info->driver_version = driver;
    info->bytes_per_second = bytes_per_second(index);
  });
}

int open(int32_t index, const DeviceShape* shape, Device** device, DeviceFailure* failure) {
  return guarded(failure, [&] { *device = new Device(index, *shape); });
}

void close(Device* device) { delete device; }

int allocate(Device* device, int64_t bytes, void** memory, DeviceFailure* failure) {
  return guarded(failure, [&] {
    device->use();
    const cudaError_t error = cudaMalloc(memory, static_cast<size_t>(bytes));
    if (error != cudaSuccess) {
      check(error, ("taking " + std::to_string(bytes) + " bytes of the GPU's memory").c_str());
    }
    check(cudaMemsetAsync(*memory, 0, static_cast<size_t>(bytes), device->stream.handle),
          "clearing memory of the GPU");
  });
}

void release(Device* device, void* memory) {
  static_cast<void>(cudaSetDevice(device->index));
  static_cast<void>(cudaFree(memory));
}

int copy(Device* device, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind,
         DeviceFailure* failure) {
  return guarded(failure, [&] {
    device->use();
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, device->stream.handle),
          "copying to or from the GPU");
    check(cudaStreamSynchronize(device->stream.handle), "waiting for a copy");
  });
}

int copy_in(Device* device, void* to, const void* host, int64_t bytes, DeviceFailure* failure) {
  return copy(device, to, host, bytes, cudaMemcpyHostToDevice, failure);
}

int copy_out(Device* device, void* host, const void* from, int64_t bytes, DeviceFailure* failure) {
  return copy(device, host, from, bytes, cudaMemcpyDeviceToHost, failure);
}

int place(Device* device, const MatrixView* host, void* memory, MatrixView* placed,
          DeviceFailure* failure) {
  return guarded(failure, [&] { *placed = place_matrix(*device, *host, memory); });
}

int stream(Device* device, const MatrixView* host, void* memory, StreamSlot slot,
           MatrixView* placed, DeviceFailure* failure) {
  return guarded(failure, [&] { *placed = stream_matrix(*device, *host, memory, slot); });
}

int stream_plain(Device* device, void* to, const void* host, int64_t bytes, StreamSlot slot,
                 DeviceFailure* failure) {
  return guarded(failure, [&] { stream_bytes(*device, to, host, bytes, slot); });
}

int await(Device* device, StreamSlot slot, DeviceFailure* failure) {
  return guarded(failure, [&] { await_slot(*device, slot); });
}

int release_slot(Device* device, StreamSlot slot, DeviceFailure* failure) {
  return guarded(failure, [&] { free_slot(*device, slot); });
}

float* rows(Device* device, Rows which) {
  return device->rows[static_cast<int>(which)].as<float>();
}

const char* note(const Device* device) {
  return device->note.empty() ? nullptr : device->note.c_str();
}

int begin(Device* device, const DeviceBatch* batch, DeviceFailure* failure) {
  return guarded(failure, [&] { begin_pass(*device, *batch); });
}

int replay(Device* device, uint64_t key, int32_t* found, DeviceFailure* failure) {
  return guarded(failure, [&] { *found = replay_pass(*device, key) ? 1 : 0; });
}

int record(Device* device, DeviceFailure* failure) {
  return guarded(failure, [&] { record_pass(*device); });
}

int end_record(Device* device, uint64_t key, int32_t keep, DeviceFailure* failure) {
  return guarded(failure, [&] { end_recording(*device, key, keep != 0); });
}

int finish(Device* device, int64_t* layer, int32_t* op, DeviceFailure* failure) {
  return guarded(failure, [&] {
    DeviceOp where{};
    finish_pass(*device, *layer, where);
    *op = static_cast<int32_t>(where);
  });
}

int embed(Device* device, const EmbeddingView* table, float* x, DeviceFailure* failure) {
  return guarded(failure, [&] { queue_embed(*device, *table, x); });
}

int qkv(Device* device, const LayerView* layer, float eps, const KvLayerView* cache, const float* x,
        float* q, DeviceFailure* failure) {
  return guarded(failure, [&] { queue_qkv(*device, *layer, eps, *cache, x, q); });
}

int attend(Device* device, const LayerView* layer, const KvLayerView* cache, const float* q,
           float* attended, DeviceFailure* failure) {
  return guarded(failure, [&] { queue_attend(*device, *layer, *cache, q, attended); });
}

int project(Device* device, const LayerView* layer, const float* attended, float* x,
            DeviceFailure* failure) {
  return guarded(failure, [&] { queue_project(*device, *layer, attended, x); });
}

int gate_up(Device* device, const LayerView* layer, float eps, const float* x, float* hidden,
            DeviceFailure* failure) {
  return guarded(failure, [&] { queue_gate_up(*device, *layer, eps, x, hidden); });
}

int down(Device* device, const LayerView* layer, const float* hidden, float* x,
         DeviceFailure* failure) {
  return guarded(failure, [&] { queue_down(*device, *layer, hidden, x); });
}

int output(Device* device, const float* norm, const MatrixView* matrix, float eps, const float* x,
           float* y, DeviceFailure* failure) {
  return guarded(failure, [&] { queue_output(*device, norm, matrix, eps, x, y); });
}

int select(Device* device, int64_t k, float* values, int32_t* ids, DeviceFailure* failure) {
  return guarded(failure, [&] { select_largest(*device, k, values, ids); });
}

int copy_kv_blocks(Device* device, const KvLayerView* layers, int64_t n_layers,
                   const int32_t* source, const int32_t* destination, int64_t n,
                   DeviceFailure* failure) {
  return guarded(failure, [&] { copy_blocks(*device, layers, n_layers, source, destination, n); });
}

}  // namespace
}  // namespace llama2q

extern "C" {
[[gnu::visibility("default")]] extern const llama2q::DeviceTable llama2q_device_table;
}

const llama2q::DeviceTable llama2q_device_table = {
    .version = llama2q::kDeviceTableVersion,
    .size = sizeof(llama2q::DeviceTable),
    .targets = LLAMA2Q_CUDA_TARGETS,
    .count = llama2q::count,
    .describe = llama2q::describe,
    .open = llama2q::open,
    .close = llama2q::close,
    .allocate = llama2q::allocate,
    .release = llama2q::release,
    .copy_in = llama2q::copy_in,
    .copy_out = llama2q::copy_out,
    .place_matrix = llama2q::place,
    .stream_matrix = llama2q::stream,
    .stream_bytes = llama2q::stream_plain,
    .await_slot = llama2q::await,
    .free_slot = llama2q::release_slot,
    .rows = llama2q::rows,
    .note = llama2q::note,
    .begin = llama2q::begin,
    .replay = llama2q::replay,
    .record = llama2q::record,
    .end_record = llama2q::end_record,
    .finish = llama2q::finish,
    .embed = llama2q::embed,
    .qkv = llama2q::qkv,
    .attend = llama2q::attend,
    .project = llama2q::project,
    .gate_up = llama2q::gate_up,
    .down = llama2q::down,
    .output = llama2q::output,
    .select = llama2q::select,
    .copy_blocks = llama2q::copy_kv_blocks,
};
