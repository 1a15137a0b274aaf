// Devices handed in from Python: a library, the number of a device, the layers that it gets.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/device_library.h"
#include "model/forward.h"

namespace llama2q {

// Most outputs of a pass that a device has room for; more are asked for in turns.
inline constexpr int64_t kDeviceRows = 128;

DeviceShape device_shape(const Config& config, int64_t n_ctx_blocks, int64_t max_sequences);

struct DeviceEntry {
  std::shared_ptr<const DeviceLibrary> library;
  int index;
  int64_t n_layers;
};

// From a list of tuples (DeviceLibrary, index, n_layers).
std::vector<DeviceEntry> device_entries(const pybind11::list& devices);

// What is left of the layers is the host's.
std::vector<Share> shares_of(const std::vector<DeviceEntry>& devices, const DeviceShape& shape,
                             int64_t n_layers, std::unique_ptr<CpuBackend> host);

void bind_devices(pybind11::module_& m);

}  // namespace llama2q
