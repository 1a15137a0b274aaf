// Memory of the device and of the host beside it.
#include <cstdlib>
#include <new>

#include "cuda/device.h"

namespace llama2q::cuda {

DeviceArray::DeviceArray(size_t bytes) {
  const cudaError_t error = cudaMalloc(&data_, bytes);
  if (error != cudaSuccess) {
    check(error, ("taking " + std::to_string(bytes) + " bytes of the GPU's memory").c_str());
  }
}

DeviceArray::~DeviceArray() {
  if (data_ != nullptr) static_cast<void>(cudaFree(data_));
}

StagingArray::StagingArray(size_t bytes) {
  void* pinned = nullptr;
  is_pinned_ = cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault) == cudaSuccess;
  if (is_pinned_) {
    data_ = static_cast<char*>(pinned);
    return;
  }
  static_cast<void>(cudaGetLastError());
  data_ = static_cast<char*>(std::malloc(bytes));
  if (data_ == nullptr) throw std::bad_alloc();
}

StagingArray::~StagingArray() {
  if (is_pinned_) {
    static_cast<void>(cudaFreeHost(data_));
  } else {
    std::free(data_);
  }
}

}  // namespace llama2q::cuda
