// A library of device kernels, loaded at run time: csrc/cuda/table.h says what it offers.
#pragma once

#include <memory>
#include <string>

#include "base/os/library.h"
#include "cuda/table.h"

namespace llama2q {

// A device, its driver or its library cannot do what was asked.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A device has too little free memory.
struct DeviceMemoryError : DeviceError {
  using DeviceError::DeviceError;
};

class DeviceLibrary {
 public:
  // Throws DeviceError if the file cannot be loaded or is of another version than this one.
  explicit DeviceLibrary(const std::string& path);

  const DeviceTable& table() const { return *table_; }
  // Devices that can be used; throws DeviceError if the driver is missing or too old.
  int n_devices() const;
  DeviceInfo describe(int index) const;

 private:
  Library library_;
  const DeviceTable* table_;
};

// Throws what a call of the table reported.
void check_device(int status, const DeviceFailure& failure);

}  // namespace llama2q
