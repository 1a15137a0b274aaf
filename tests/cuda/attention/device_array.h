// Arrays in device memory.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "cuda/errors.h"

namespace llama2q::testing {

template <class T>
class DeviceArray {
 public:
  // As the device hands it out: not initialized.
  explicit DeviceArray(size_t size) : size_(size) {
    cuda::check(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { static_cast<void>(cudaFree(data_)); }

  void set(const std::vector<T>& values) {
    cuda::check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
                "copy to the device");
  }
  std::vector<T> get() const {
    std::vector<T> values(size_);
    cuda::check(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
                "copy from the device");
    return values;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  size_t size_;
  T* data_ = nullptr;
};

}  // namespace llama2q::testing
