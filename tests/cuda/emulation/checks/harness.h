// What the checks are made of. intrinsics_*.cu is compiled by nvcc too: nothing here needs the
// emulation.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/errors.h"
#include "cuda/launch.h"

namespace checks {

struct Case {
  const char* name;
  void (*run)();
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void expect(bool condition, const std::string& message) {
  if (!condition) throw Failure(message);
}

template <typename T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& wanted) {
  expect(got.size() == wanted.size(), "sizes differ");
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &wanted[i], sizeof(T)) != 0) {
      throw Failure("element " + std::to_string(i) + ": got " + std::to_string(got[i]) +
                    ", wanted " + std::to_string(wanted[i]));
    }
  }
}

inline void expect_contains(const std::string& text, const std::string& part) {
  expect(text.find(part) != std::string::npos, "\"" + part + "\" is not in: " + text);
}

// Device memory.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
    llama2q::cuda::check(cudaMalloc(&data_, n * sizeof(T)), "allocating");
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { write(values); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  void write(const std::vector<T>& values) {
    llama2q::cuda::check(
        cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "writing");
  }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    llama2q::cuda::check(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost),
                         "reading");
    return values;
  }

 private:
  size_t n_;
  T* data_ = nullptr;
};

inline std::mt19937& generator() {
  static std::mt19937 instance(1);
  return instance;
}

inline std::vector<uint32_t> random_words(size_t n) {
  std::vector<uint32_t> words(n);
  for (uint32_t& word : words) word = static_cast<uint32_t>(generator()());
  return words;
}

// In [low, high].
inline int random_int(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(generator());
}

// Runs those named, or all; prints one line each.
int run(int n_arguments, char** arguments, const std::vector<Case>& cases);

}  // namespace checks
