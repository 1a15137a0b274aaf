// Log-probabilities of raw logits: part of the numeric contract.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/args.h"

namespace llama2q {

// With m the largest logit: S = sum_masses(exp(x - m)) in float64 (model/mass.h), exp in float32 by
// kernels/math.h; the log-probability of x is float32((float64(x) - m) - log S), log by base/log.h,
// rounded once. Rank 1 is the largest logit, ties go to the lower id first.
class Logprobs {
 public:
  // The log-probability and rank of `chosen`, and the k likeliest tokens in order of rank (the
  // caller gives k <= n). logits f32 [n]; ids i32 [k], values f32 [k]. Throws NonFinite for NaN,
  // +inf or a row that is -inf throughout.
  struct Chosen {
    float value;
    int32_t rank;
  };
  Chosen compute(const KernelTable& kernels, const float* logits, int64_t n, int32_t chosen,
                 int64_t k, int32_t* ids, float* values);

 private:
  void select(const float* logits, int64_t n, int64_t k);

  std::vector<float> mass_;
  std::vector<uint64_t> best_;  // keys of the k likeliest, see logprobs.cpp
};

}  // namespace llama2q
