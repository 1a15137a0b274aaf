#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/float_env.h"
#include "model/mass.h"
#include "model/philox.h"

namespace llama2q {
namespace {

// Tokens that are sorted at first; then as many again as are sorted already.
constexpr size_t kFirstSorted = 32;
// From so many on, a band is sorted by its digits.
constexpr size_t kRadixFrom = 1024;

uint64_t key_of(float mass, int64_t id) {
  return uint64_t{std::bit_cast<uint32_t>(mass)} << 32 | ~static_cast<uint32_t>(id);
}

// Sorts keys in descending order of their masses, three digits of 11 bits; those of equal masses
// keep their order. `spare` is as long as `keys`.
void radix_sort(std::span<uint64_t> keys, std::span<uint64_t> spare) {
  std::span<uint64_t> from = keys, to = spare;
  for (const int shift : {32, 43, 54}) {
    const auto digit_of = [=](uint64_t key) { return 2047 - (key >> shift & 2047); };
    std::array<uint32_t, 2049> starts{};
    for (const uint64_t key : from) ++starts[digit_of(key) + 1];
    if (starts[digit_of(from[0]) + 1] == from.size()) continue;  // all digits are equal
    for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
    for (const uint64_t key : from) to[starts[digit_of(key)]++] = key;
    std::swap(from, to);
  }
  if (from.data() != keys.data()) std::copy(from.begin(), from.end(), keys.begin());
}

void check_args(const SampleArgs& args) {
  require(args.temperature >= 0.0f && std::isfinite(args.temperature),
          "temperature is " + std::to_string(args.temperature) + "; expected >= 0");
  require(args.top_p > 0.0f && args.top_p <= 1.0f,
          "top_p is " + std::to_string(args.top_p) + "; expected more than 0, at most 1");
  require(args.top_k >= 0, "top_k is " + std::to_string(args.top_k) + "; expected >= 0 (0: off)");
  require(args.min_p >= 0.0f && args.min_p <= 1.0f,
          "min_p is " + std::to_string(args.min_p) + "; expected 0 to 1");
}

}  // namespace

double Sampler::mass_of(size_t index) const {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(candidates_[index] >> 32)));
}

int32_t Sampler::id_of(size_t index) const {
  return static_cast<int32_t>(~static_cast<uint32_t>(candidates_[index]));
}

bool Sampler::collect(int64_t n, float min_p) {
  const size_t before = n_candidates_;
  while (bound_ > 0.0f && n_candidates_ == before) {
    const float upper = bound_;
    const float lower = upper * 0x1p-10f;  // underflows to 0 in the end
    const float from = std::max({lower, min_p, 0x1p-149f});
    bound_ = lower > min_p ? lower : 0.0f;
    const auto take = [&](int64_t i) {
      const float mass = mass_[static_cast<size_t>(i)];
      candidates_[n_candidates_] = key_of(mass, i);
      n_candidates_ += mass >= from && mass < upper ? 1 : 0;
    };
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      if (!any_of_16(mass_.data() + i, from)) continue;
      for (int64_t j = i; j < i + 16; ++j) take(j);
    }
    for (; i < n; ++i) take(i);
  }
  return n_candidates_ > before;
}

bool Sampler::has(size_t index, int64_t n, float min_p) {
  while (index >= n_sorted_) {
    if (n_sorted_ == n_candidates_) {
      if (!collect(n, min_p)) return false;
      const size_t count = n_candidates_ - n_sorted_;
      if (count >= kRadixFrom) {
        spare_.resize(std::max(spare_.size(), count));
        radix_sort(std::span(candidates_).subspan(n_sorted_, count),
                   std::span(spare_).first(count));
        n_sorted_ = n_candidates_;
        continue;
      }
    }
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(n_sorted_);
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(n_candidates_);
    n_sorted_ = std::min(n_candidates_, n_sorted_ + std::max(kFirstSorted, n_sorted_));
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(n_sorted_);
    if (last != end) std::nth_element(first, last, end, std::greater<>());
    std::sort(first, last, std::greater<>());
  }
  return true;
}

int32_t Sampler::sample(const KernelTable& kernels, const float* logits, int64_t n,
                        const SampleArgs& args) {
  check_args(args);
  const FloatEnv environment;
  const float largest = kernels.max_finite(logits, n);
  if (!std::isfinite(largest)) {
    throw NonFinite("the logits hold NaN or +inf, or are -inf throughout; no token can be drawn");
  }
  if (args.temperature == 0.0f) {
    return static_cast<int32_t>(first_of(logits, n, largest));
  }
  mass_.resize(static_cast<size_t>(n));
  kernels.exp_scaled(logits, n, largest, args.temperature, mass_.data());
  candidates_.resize(static_cast<size_t>(n) + 1);  // one is written beyond the last taken
  n_candidates_ = n_sorted_ = 0;
  bound_ = 2.0f;  // above exp(0) = 1
  const auto has_token = [&](size_t i) { return has(i, n, args.min_p); };

  const size_t limit = args.top_k == 0 ? static_cast<size_t>(n) : static_cast<size_t>(args.top_k);
  double total = 0.0;
  if (args.top_k == 0) {
    total = sum_masses(mass_.data(), n, args.min_p);
  } else {
    for (size_t i = 0; i < limit && has_token(i); ++i) total += mass_of(i);
  }
  // The kept prefix; without a cut by top_p it is everything, and its mass the total.
  size_t kept_count = limit;
  double kept = total;
  if (args.top_p < 1.0f) {
    const double cut = static_cast<double>(args.top_p) * total;
    kept = 0.0;
    for (kept_count = 0; kept_count < limit && kept <= cut && has_token(kept_count); ++kept_count) {
      kept += mass_of(kept_count);
    }
  }
  const double target = philox_uniform(args.seed, static_cast<uint32_t>(args.sequence_index),
                                       static_cast<uint32_t>(args.position)) *
                        kept;
  double cumulative = 0.0;
  size_t drawn = 0;
  for (size_t i = 0; i < kept_count && has_token(i); ++i) {
    cumulative += mass_of(i);
    drawn = i;
    if (cumulative > target) break;
  }
  return id_of(drawn);
}

}  // namespace llama2q
