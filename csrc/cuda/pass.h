// What the table's functions of a pass do; they throw.
#pragma once

#include "cuda/device.h"

namespace llama2q {

void begin_pass(Device& device, const DeviceBatch& batch);
bool replay_pass(Device& device, uint64_t key);
void record_pass(Device& device);
void end_recording(Device& device, uint64_t key, bool is_kept);
void finish_pass(Device& device, int64_t& layer, DeviceOp& op);

}  // namespace llama2q
