#include "backend/device_library.h"

namespace llama2q {
namespace {

using std::to_string;

}  // namespace

void check_device(int status, const DeviceFailure& failure) {
  if (status == 0) return;
  if (failure.fault == DeviceFault::kOutOfMemory) throw DeviceMemoryError(failure.text);
  throw DeviceError(failure.text);
}

DeviceLibrary::DeviceLibrary(const std::string& path) try : library_(path) {
  table_ = static_cast<const DeviceTable*>(library_.symbol(kDeviceTableSymbol));
  if (table_ == nullptr) {
    throw DeviceError(path + " has no " + kDeviceTableSymbol + "; it is no library of llama2q");
  }
  if (table_->version != kDeviceTableVersion || table_->size != sizeof(DeviceTable)) {
    throw DeviceError(path + " offers version " + to_string(table_->version) + " (" +
                      to_string(table_->size) + " bytes) of the device table; expected version " +
                      to_string(kDeviceTableVersion) + " (" + to_string(sizeof(DeviceTable)) +
                      "). Install llama2q again");
  }
} catch (const DeviceError&) {
  throw;
} catch (const std::runtime_error& error) {
  throw DeviceError(error.what());
}

int DeviceLibrary::n_devices() const {
  int32_t n = 0;
  DeviceFailure failure{};
  check_device(table_->count(&n, &failure), failure);
  return n;
}

DeviceInfo DeviceLibrary::describe(int index) const {
  DeviceInfo info{};
  DeviceFailure failure{};
  check_device(table_->describe(index, &info, &failure), failure);
  return info;
}

}  // namespace llama2q
