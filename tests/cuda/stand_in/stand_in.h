// A device that stands in for a GPU, and what tests make of it. stand_in.cpp says how.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "cuda/table.h"

namespace llama2q {

struct Device {
  Device(int32_t number, const DeviceShape& sizes)
      : index(number), shape(sizes), backend(*available_kernels().back(), 1) {}

  int32_t index;
  DeviceShape shape;
  CpuBackend backend;
  std::map<void*, int64_t> memory;
  std::vector<float> rows[kRows];
  std::vector<int32_t> token_ids, positions, sequence_of_token, block_tables, output_rows;
  Batch batch{};
  Pass pass{};
  int64_t faulty_layer = -1;
  DeviceOp faulty_op{};
  bool begun = false, recording = false;
  bool awaited[kStreamSlots]{};
  std::vector<std::function<void()>> queue;
  std::map<uint64_t, std::vector<std::function<void()>>> recorded;
};

namespace stand_in {

int64_t number_from(const char* name, int64_t otherwise);
int fail(DeviceFailure* failure, DeviceFault fault, const std::string& text);
// Whether LLAMA2Q_STAND_IN_FAIL wants this call to fail.
bool is_to_fail(const char* name);
int refuse(const char* name, DeviceFailure* failure);
// Does what is queued.
void flush(Device* device);

// Fill in the functions of devices, memory and weights, and those of passes and ops.
void add_memory(DeviceTable& table);
void add_passes(DeviceTable& table);

}  // namespace stand_in
}  // namespace llama2q
