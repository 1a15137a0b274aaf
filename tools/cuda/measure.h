// Timing of launches, and the memory and output that benchmarks of kernels share. A row is a line
// of JSON on stdout, written as soon as it is measured.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/launch.h"

namespace bench {

// Memory of the device, freed with the object.
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Blocks of host memory that fill() repeats: random bytes, random f16 in [-1, 1), one word.
std::vector<unsigned char> random_bytes();
std::vector<unsigned char> random_halves();
std::vector<unsigned char> repeated_word(uint32_t word);
void fill(void* memory, int64_t bytes, const std::vector<unsigned char>& block);
Memory upload(const void* host, int64_t bytes);
Memory zeros(int64_t bytes);
// Random f32 in [-1, 1).
Memory random_floats(int64_t n);

struct Settings {
  double seconds = 0.1;  // for the samples of a row
  int least_samples = 20;
  int64_t rotate_bytes = 0;  // distinct bytes that a chain of launches reads, at least
  double chain_seconds = 0.002;
};

// Microseconds of a launch: those of a chain of `launches` over their number, per chain.
struct Times {
  double median = 0, p10 = 0, p90 = 0;
  int samples = 0, launches = 0;
};

// Buffers of `bytes` to rotate over.
int rotations(const Settings& settings, int64_t bytes, int most = 1 << 20);

// queue(stream, i) queues launch i of a chain, which is captured as a graph and replayed, so that
// the host's launches are not what is measured. guess_us: of a launch, about. At least n_buffers
// launches.
Times time_chain(const Settings& settings, const llama2q::cuda::Stream& stream, int n_buffers,
                 double guess_us,
                 const std::function<void(const llama2q::cuda::Stream&, int)>& queue);

class Row {
 public:
  Row& text(const char* key, const std::string& value);
  Row& number(const char* key, double value);
  // "us", "us_p10" and so on.
  Row& times(const Times& times, const std::string& prefix = "us");
  void print() const;

 private:
  std::string line_;
};

// The device's L2 and multiprocessors, a stream of its own.
struct Machine {
  Machine();
  ~Machine();
  cudaDeviceProp properties{};
  llama2q::cuda::Stream stream;
};

// Runs `body`; what it throws becomes a row with "error". False if the device is of no use any
// more.
bool guarded(const std::string& what, const std::function<void()>& body);

}  // namespace bench
