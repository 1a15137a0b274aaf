// From logits to a token: part of the numeric contract (DESIGN.md section 5.5).
#pragma once

#include <cstddef>
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
// first token whose cumulative mass exceeds u * kept. Sums are float64: those over sorted tokens in
// their order, the total without top_k as in model/mass.h.
class Sampler {
 public:
  // logits f32 [n]. Throws InvalidArgument for a parameter out of range, NonFinite for NaN, +inf or
  // a row that is -inf throughout.
  int32_t sample(const KernelTable& kernels, const float* logits, int64_t n,
                 const SampleArgs& args);

 private:
  // Whether there is a token of that index in descending order; sorts so far if need be.
  bool has(size_t index, int64_t n, float min_p);
  // Appends to candidates_ the tokens of the next band of masses, unsorted; false if none is left.
  bool collect(int64_t n, float min_p);
  double mass_of(size_t index) const;
  int32_t id_of(size_t index) const;

  std::vector<float> mass_;
  // Bits of the mass, which ascend with it, then of ~id: a larger key comes first.
  std::vector<uint64_t> candidates_;
  std::vector<uint64_t> spare_;
  size_t n_candidates_ = 0;
  size_t n_sorted_ = 0;
  float bound_ = 0.0f;  // masses from here up have been collected
};

}  // namespace llama2q
