// The bytes of one fuzz input, taken piece by piece; when they run out, zeros follow.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace llama2q::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : uint8_t{0}; }
  bool empty() const { return at_ == end_; }
  // In [low, high], from as many bytes as the range needs.
  int64_t between(int64_t low, int64_t high) {
    const auto range = static_cast<uint64_t>(high - low);
    uint64_t value = 0;
    for (uint64_t left = range; left > 0; left >>= 8) value = value << 8 | byte();
    return low + static_cast<int64_t>(range == UINT64_MAX ? value : value % (range + 1));
  }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }
  template <class T>
  T raw() {
    uint8_t bytes[sizeof(T)];
    for (uint8_t& b : bytes) b = byte();
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  // Any float: often a plain one, sometimes any bits (NaN, infinities, denormals).
  float real() {
    const uint8_t kind = byte();
    if (kind < 160) return static_cast<float>(static_cast<int8_t>(byte())) / 16.0f;
    if (kind < 200) return raw<float>();
    static constexpr float kSpecial[] = {
        0.0f,  -0.0f,  1.0f,    -1.0f,    0x1p-149f, 0x1p-126f, 65504.f,  65520.0f,
        88.0f, -88.0f, 3.4e38f, -3.4e38f, 0x1p-100f, 0x1p-14f,  0x1p-25f, 1e-7f};
    return kSpecial[kind % 16];
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// splitmix64: fills what need not be chosen byte by byte.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [-1, 1).
  float real() { return static_cast<float>(static_cast<int32_t>(next() >> 32)) * 0x1p-31f; }

 private:
  uint64_t state_;
};

// An array of exactly n elements at a multiple of 64 bytes, so that the address sanitizer sees
// every byte that is read beyond it.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t n = 0) : size_(n) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, static_cast<size_t>(n) * sizeof(T)) != 0) std::abort();
    data_.reset(static_cast<T*>(p));
    std::memset(p, 0, static_cast<size_t>(n) * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_.get()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

// Ends the process with a message: the contract is broken.
[[noreturn]] void fail(const char* what, const char* isa);

// Says so unless the two arrays are equal bit for bit.
template <class T>
void expect_equal(const char* what, const char* isa, const Exact<T>& a, const Exact<T>& b) {
  if (std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(T)) != 0) {
    fail(what, isa);
  }
}

void fuzz_batch(Input& input);
void fuzz_step(Input& input);
void fuzz_copy_blocks(Input& input);
void fuzz_quantizers(Input& input);
void fuzz_sampling(Input& input);
void fuzz_attention(Input& input);
void fuzz_rows(Input& input);
void fuzz_matmul(Input& input);
void fuzz_calibrate(Input& input);

}  // namespace llama2q::fuzz
