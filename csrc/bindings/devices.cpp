#include "bindings/devices.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "backend/device_backend.h"
#include "bindings/bind.h"
#include "bindings/config.h"
#include "bindings/weights.h"
#include "cuda/work.h"

namespace llama2q {
namespace {

namespace py = pybind11;
using SharedLibrary = std::shared_ptr<DeviceLibrary>;

py::dict describe(const DeviceLibrary& library, int index) {
  const DeviceInfo info = [&] {
    const py::gil_scoped_release release;
    return library.describe(index);
  }();
  py::dict found;
  found["name"] = info.name;
  found["total_bytes"] = info.total_bytes;
  found["free_bytes"] = info.free_bytes;
  found["compute_capability"] = py::make_tuple(info.major, info.minor);
  found["n_multiprocessors"] = info.n_multiprocessors;
  found["shared_bytes"] = info.shared_bytes;
  found["driver_version"] =
      py::make_tuple(info.driver_version / 1000, info.driver_version % 1000 / 10);
  found["bytes_per_second"] = info.bytes_per_second;
  return found;
}

}  // namespace

DeviceShape device_shape(const Config& config, int64_t n_ctx_blocks, int64_t max_sequences) {
  return {.dim = config.dim,
          .hidden_dim = config.hidden_dim,
          .n_layers = config.n_layers,
          .n_heads = config.n_heads,
          .n_kv_heads = config.n_kv_heads,
          .head_dim = config.head_dim(),
          .vocab_size = config.vocab_size,
          .n_ctx_blocks = n_ctx_blocks,
          .max_sequences = max_sequences,
          // In this order no number of blocks overflows.
          .n_tokens = std::min(kStepTokens / kBlockSize, n_ctx_blocks * max_sequences) * kBlockSize,
          .n_rows = kDeviceRows};
}

std::vector<DeviceEntry> device_entries(const py::list& devices) {
  std::vector<DeviceEntry> entries;
  for (const py::handle& device : devices) {
    try {
      const auto [library, index, n_layers] =
          device.cast<std::tuple<SharedLibrary, int, int64_t>>();
      entries.push_back({library, index, n_layers});
    } catch (const py::cast_error&) {
      throw InvalidArgument("devices: expected tuples of a DeviceLibrary, a number and n_layers");
    }
  }
  return entries;
}

std::vector<Share> shares_of(const std::vector<DeviceEntry>& devices, const DeviceShape& shape,
                             int64_t n_layers, std::unique_ptr<CpuBackend> host) {
  int64_t left = n_layers;
  for (const DeviceEntry& device : devices) left -= device.n_layers;
  require(left >= 0,
          "devices: they take more than the model's " + std::to_string(n_layers) + " layers");
  std::vector<Share> shares;
  if (left > 0) shares.push_back({std::move(host), left});
  for (const DeviceEntry& device : devices) {
    shares.push_back(
        {std::make_unique<DeviceBackend>(device.library, device.index, shape), device.n_layers});
  }
  return shares;
}

void bind_devices(py::module_& m) {
  using py::arg;
  py::class_<DeviceLibrary, SharedLibrary>(
      m, "DeviceLibrary", "Kernels for devices, in a library that is loaded at run time.")
      .def(py::init<const std::string&>(), arg("path"))
      .def_property_readonly("targets",
                             [](const DeviceLibrary& self) { return self.table().targets; })
      .def_property_readonly("n_devices", &DeviceLibrary::n_devices)
      .def("describe", describe, arg("index"), "Name, memory and abilities of a device.");
  m.def(
      "device_work_bytes",
      [](const py::dict& config, int64_t n_ctx_blocks, int64_t max_sequences,
         int64_t n_multiprocessors, int64_t shared_bytes) {
        require(n_ctx_blocks >= 1 && max_sequences >= 1 && n_multiprocessors >= 1,
                "n_ctx_blocks, max_sequences and n_multiprocessors: expected at least 1");
        const DeviceShape shape = device_shape(config_of(config), n_ctx_blocks, max_sequences);
        return cuda::WorkSizes(shape, {n_multiprocessors, shared_bytes}).total();
      },
      arg("config"), arg("n_ctx_blocks"), arg("max_sequences"), arg("n_multiprocessors"),
      arg("shared_bytes"),
      "Bytes of a model's work space on a device that has so many multiprocessors, and whose "
      "blocks "
      "may have so much shared memory.");
  m.def(
      "device_matrix_bytes", [](const PyMatrix& matrix) { return cuda::matrix_bytes(matrix.view); },
      arg("matrix"), "Bytes that a matrix takes on a device.");
}

}  // namespace llama2q
