// Small random numbers, fast: xorshift64*.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace cuda_emulation {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_((seed + 1) * 0x9e3779b97f4a7c15u | 1u) {}

  // In [0, n), n > 0.
  unsigned below(unsigned n) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    const auto high = static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
    return static_cast<unsigned>((uint64_t{high} * n) >> 32);
  }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[below(static_cast<unsigned>(i))]);
    }
  }

 private:
  uint64_t state_;
};

}  // namespace cuda_emulation
