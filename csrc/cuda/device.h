// An open GPU: its stream, the rows of a forward pass, the batch, recorded passes. Host code.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "cuda/table.h"
#include "cuda/work.h"

namespace llama2q::cuda {

// Memory of the device, freed with the object.
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t bytes);
  ~DeviceArray();
  DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Memory of the host that the device copies from and to at full speed; ordinary memory where the
// system refuses to pin so much.
class StagingArray {
 public:
  explicit StagingArray(size_t bytes);
  ~StagingArray();
  StagingArray(const StagingArray&) = delete;
  StagingArray& operator=(const StagingArray&) = delete;

  char* data() const { return data_; }
  bool is_pinned() const { return is_pinned_; }

 private:
  char* data_ = nullptr;
  bool is_pinned_ = false;
};

// A pass that can be queued again as a whole.
class Graph {
 public:
  explicit Graph(cudaGraph_t graph);
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&&) = delete;
  void queue(cudaStream_t stream) const;

 private:
  cudaGraphExec_t handle_ = nullptr;
};

}  // namespace llama2q::cuda

namespace llama2q {

struct Device {
  Device(int32_t number, const DeviceShape& sizes);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Makes this device the calling thread's.
  void use() const;
  // Waits for all that is queued, and throws away what a pass that ended early was recording.
  void settle();

  template <class T>
  T* batch_array(size_t offset) const {
    return reinterpret_cast<T*>(batch.as<char>() + offset);
  }
  template <class Function>
  void for_each_event(Function function) {
    for (cudaEvent_t& event : staged) function(event);
    for (cudaEvent_t& event : arrived) function(event);
    for (cudaEvent_t& event : freed) function(event);
  }
  cuda::TokenView tokens() const;
  cuda::FaultSite fault_at(int64_t layer, DeviceOp op) const;
  // Positions that the launches of this pass cover: above every one of the batch.
  int64_t context() const;

  const int32_t index;
  const DeviceShape shape;
  DeviceLimits limits{};
  bool overlaps = false;  // launches may start before the one before has ended
  cuda::Stream stream;
  cuda::Stream copies;      // of weights that visit
  cudaEvent_t staged[2]{};  // when a staging buffer may be filled again
  int turn = 0;             // the staging buffer that was filled last
  cudaEvent_t arrived[kStreamSlots]{}, freed[kStreamSlots]{};
  std::string note;

  cuda::DeviceArray rows[kRows];
  cuda::DeviceArray keys, values;  // f32 [n_tokens, n_kv_heads * head_dim]
  cuda::DeviceArray asked;         // f32 [n_rows, dim]
  cuda::DeviceArray matmul_work, matmul_tickets;
  cuda::DeviceArray states, decode_tickets;                          // of attention
  cuda::DeviceArray select_keys, select_tickets, values_of, ids_of;  // of select()
  cuda::DeviceArray batch;
  cuda::DeviceArray raw[2];  // weights on their way
  std::unique_ptr<cuda::StagingArray> staging[2], batch_staging;

  // The pass that has begun.
  cuda::BatchLayout layout;
  int64_t n_tokens = 0, n_rows = 0, most_positions = 0, n_tiles = 0;
  bool is_recording = false;
  std::map<uint64_t, cuda::Graph> graphs;
};

}  // namespace llama2q
