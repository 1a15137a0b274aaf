#include "model/logprobs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "base/log.h"
#include "model/mass.h"

namespace llama2q {
namespace {

// A larger key is a likelier token: the logit's bits made to ascend, then the lower id. Adding +0
// makes -0 and +0 one value.
uint64_t key_of(float logit, int64_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ascending} << 32 | ~static_cast<uint32_t>(id);
}

int32_t id_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

int32_t rank_of(const float* logits, int64_t n, int32_t chosen) {
  const float value = logits[chosen];
  int32_t before = 0;
  for (int64_t i = 0; i < n; ++i) before += logits[i] > value ? 1 : 0;
  for (int64_t i = 0; i < chosen; ++i) before += logits[i] == value ? 1 : 0;
  return before + 1;
}

}  // namespace

// best_ is a heap whose front is the least likely of the k likeliest so far.
void Logprobs::select(const float* logits, int64_t n, int64_t k) {
  best_.clear();
  if (k == 0) return;
  float least = -std::numeric_limits<float>::infinity();
  const auto take = [&](int64_t i) {
    const uint64_t key = key_of(logits[i], i);
    const bool is_full = std::ssize(best_) == k;
    if (is_full && key < best_.front()) return;
    if (is_full) {
      std::pop_heap(best_.begin(), best_.end(), std::greater<>());
      best_.pop_back();
    }
    best_.push_back(key);
    std::push_heap(best_.begin(), best_.end(), std::greater<>());
    if (std::ssize(best_) == k) least = logits[id_of(best_.front())];
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    if (!any_of_16(logits + i, least)) continue;
    for (int64_t j = i; j < i + 16; ++j) take(j);
  }
  for (; i < n; ++i) take(i);
  std::sort(best_.begin(), best_.end(), std::greater<>());
}

Logprobs::Chosen Logprobs::compute(const KernelTable& kernels, const float* logits, int64_t n,
                                   int32_t chosen, int64_t k, int32_t* ids, float* values) {
  require(chosen >= 0 && chosen < n, "token id " + std::to_string(chosen) +
                                         " is outside the vocabulary; expected 0 to " +
                                         std::to_string(n - 1));
  const float largest = kernels.max_finite(logits, n);
  if (!std::isfinite(largest)) {
    throw NonFinite("the logits hold NaN or +inf, or are -inf throughout; no probability is left");
  }
  mass_.resize(static_cast<size_t>(n));
  kernels.exp_scaled(logits, n, largest, 1.0f, mass_.data());
  const double log_sum = log_of(sum_masses(mass_.data(), n, 0.0f));
  const auto value_of = [&](int32_t id) {
    return static_cast<float>((static_cast<double>(logits[id]) - static_cast<double>(largest)) -
                              log_sum);
  };
  select(logits, n, k);
  for (size_t i = 0; i < best_.size(); ++i) {
    ids[i] = id_of(best_[i]);
    values[i] = value_of(ids[i]);
  }
  return {value_of(chosen), rank_of(logits, n, chosen)};
}

}  // namespace llama2q
