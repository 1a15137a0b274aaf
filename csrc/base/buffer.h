// A growing, uninitialised array aligned to 64 bytes.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "base/check.h"

namespace llama2q {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least n elements; what was there before is lost if the buffer has to grow.
  T* reserve(int64_t n) {
    if (n > capacity_) {
      const auto bytes = static_cast<size_t>(checked_multiply(n, sizeof(T)));
      release();
      data_ = static_cast<T*>(::operator new(bytes, std::align_val_t{64}));
      capacity_ = n;
    }
    return data_;
  }
  T* data() { return data_; }
  int64_t bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }

 private:
  void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t{64});
    data_ = nullptr;
    capacity_ = 0;
  }

  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace llama2q
