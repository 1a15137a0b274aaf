#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <string>

#include "base/check.h"
#include "base/float_env.h"
#include "model/philox.h"

namespace llama2q {
namespace {

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

// Eight running sums by id mod 8, then 4, 2, 1.
double Sampler::total_mass(int64_t n, float min_p) const {
  std::array<double, 8> sums{};
  for (int64_t i = 0; i < n; ++i) {
    const float mass = mass_[static_cast<size_t>(i)];
    sums[static_cast<size_t>(i % 8)] += mass >= min_p ? static_cast<double>(mass) : 0.0;
  }
  for (size_t half = 4; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

bool Sampler::extend(int64_t n, float min_p) {
  while (bound_ > 0.0f) {
    const float upper = bound_;
    const float lower = upper * 0x1p-10f;  // underflows to 0 in the end
    const float from = std::max(lower, min_p);
    bound_ = lower > min_p ? lower : 0.0f;
    const auto first = static_cast<std::ptrdiff_t>(sorted_.size());
    for (int64_t i = 0; i < n; ++i) {
      const float mass = mass_[static_cast<size_t>(i)];
      if (mass >= from && mass < upper && mass > 0.0f) {
        sorted_.push_back({mass, static_cast<int32_t>(i)});
      }
    }
    std::sort(sorted_.begin() + first, sorted_.end(), [](const Candidate& a, const Candidate& b) {
      return a.mass > b.mass || (a.mass == b.mass && a.id < b.id);
    });
    if (std::ssize(sorted_) > first) return true;
  }
  return false;
}

int32_t Sampler::sample(const float* logits, int64_t n, const SampleArgs& args) {
  check_args(args);
  const FloatEnv environment;
  const float largest = kernels_.max_finite(logits, n);
  if (!std::isfinite(largest)) {
    throw NonFinite("the logits hold NaN or +inf, or are -inf throughout; no token can be drawn");
  }
  if (args.temperature == 0.0f) {
    return static_cast<int32_t>(std::find(logits, logits + n, largest) - logits);
  }
  mass_.resize(static_cast<size_t>(n));
  kernels_.exp_scaled(logits, n, largest, args.temperature, mass_.data());
  sorted_.clear();
  bound_ = 2.0f;  // above exp(0) = 1
  const auto has = [&](size_t i) { return i < sorted_.size() || extend(n, args.min_p); };

  const size_t limit = args.top_k == 0 ? static_cast<size_t>(n) : static_cast<size_t>(args.top_k);
  double total = 0.0;
  if (args.top_k == 0) {
    total = total_mass(n, args.min_p);
  } else {
    for (size_t i = 0; i < limit && has(i); ++i) total += static_cast<double>(sorted_[i].mass);
  }
  // The kept prefix; without a cut by top_p it is everything, and its mass the total.
  size_t kept_count = limit;
  double kept = total;
  if (args.top_p < 1.0f) {
    const double cut = static_cast<double>(args.top_p) * total;
    kept = 0.0;
    for (kept_count = 0; kept_count < limit && kept <= cut && has(kept_count); ++kept_count) {
      kept += static_cast<double>(sorted_[kept_count].mass);
    }
  }
  const double target = philox_uniform(args.seed, static_cast<uint32_t>(args.sequence_index),
                                       static_cast<uint32_t>(args.position)) *
                        kept;
  double cumulative = 0.0;
  int32_t last = sorted_.empty() ? 0 : sorted_.front().id;
  for (size_t i = 0; i < kept_count && has(i); ++i) {
    cumulative += static_cast<double>(sorted_[i].mass);
    last = sorted_[i].id;
    if (cumulative > target) break;
  }
  return last;
}

}  // namespace llama2q
