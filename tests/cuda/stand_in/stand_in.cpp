// A library of device kernels that is none: the table of csrc/cuda/table.h over the CPU's kernels,
// for tests of what stands around kernels: the split of layers, hops, plans, failures. It counts
// the memory that it is asked for against a limit, and its results are the CPU's, bit for bit.
// Recordings are replayed as on a device: the arguments are kept, the batch is the current one.
//   LLAMA2Q_STAND_IN_DEVICES  how many there are (1)
//   LLAMA2Q_STAND_IN_BYTES    memory of each, free at first (1 GiB)
//   LLAMA2Q_STAND_IN_FAIL     NAME or NAME:N: the call of that name fails, from the N-th on
#include "stand_in.h"

#include <cstdio>
#include <cstdlib>

#include "base/float_env.h"

namespace llama2q::stand_in {

int64_t number_from(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

int fail(DeviceFailure* failure, DeviceFault fault, const std::string& text) {
  failure->fault = fault;
  std::snprintf(failure->text, sizeof failure->text, "%s", text.c_str());
  return 1;
}

bool is_to_fail(const char* name) {
  static std::map<std::string, int64_t> calls;
  const int64_t call = ++calls[name];
  const char* wanted = std::getenv("LLAMA2Q_STAND_IN_FAIL");
  if (wanted == nullptr) return false;
  const std::string text = wanted;
  const size_t colon = text.find(':');
  const int64_t from =
      colon == std::string::npos ? 1 : std::strtoll(text.c_str() + colon + 1, nullptr, 10);
  return text.substr(0, colon) == name && call >= from;
}

int refuse(const char* name, DeviceFailure* failure) {
  return fail(failure, DeviceFault::kOther, std::string(name) + ": the stand-in was told to fail");
}

void flush(Device* device) {
  const FloatEnv environment;
  for (const auto& done : device->queue) done();
  device->queue.clear();
}

namespace {

DeviceTable make_table() {
  DeviceTable table{};
  table.version = kDeviceTableVersion;
  table.size = sizeof(DeviceTable);
  table.targets = "stand-in";
  add_memory(table);
  add_passes(table);
  return table;
}

}  // namespace
}  // namespace llama2q::stand_in

extern "C" {
[[gnu::visibility("default")]] extern const llama2q::DeviceTable llama2q_device_table;
}

const llama2q::DeviceTable llama2q_device_table = llama2q::stand_in::make_table();
