// From logits to a token: part of the numeric contract (DESIGN.md section 5.5).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/args.h"

namespace llama2q {

struct SampleArgs {
  float temperature;  // 0: argmax
  float top_p;        // (0, 1]
  int32_t top_k;      // 0: off
  float min_p;        // [0, 1]
  uint64_t seed;
  int32_t sequence_index;
  int32_t position;  // that the emitted token will occupy
};

// Order of the steps: temperature, min_p, top_k, top_p, draw. With e = exp((x - max) / T):
// tokens with e < min_p drop; the top_k largest stay; of those, in descending order (ties: lower id
// first), tokens stay while the mass before them is <= top_p * total; then one draw u picks the
// first token whose cumulative mass exceeds u * kept. Sums are float64 in the order written here.
class Sampler {
 public:
  explicit Sampler(const KernelTable& kernels) : kernels_(kernels) {}

  // logits f32 [n]. Throws InvalidArgument for a parameter out of range, NonFinite for NaN, +inf or
  // a row that is -inf throughout.
  int32_t sample(const float* logits, int64_t n, const SampleArgs& args);

 private:
  struct Candidate {
    float mass;
    int32_t id;
  };
  double total_mass(int64_t n, float min_p) const;
  // Appends to sorted_ the next tokens in descending order of mass: those below bound_ and, in the
  // first call that finds any, above bound_ / 1024 (sorting all would cost more than the rest).
  // False when none is left.
  bool extend(int64_t n, float min_p);

  const KernelTable& kernels_;
  std::vector<float> mass_;
  std::vector<Candidate> sorted_;
  float bound_ = 0.0f;
};

}  // namespace llama2q
