// The models whose kernels are timed, and what a run times of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "measure.h"

namespace bench {

struct Shape {
  const char* name;
  int64_t dim, hidden_dim, n_heads, n_kv_heads, head_dim, vocab_size;

  int64_t kv_dim() const { return n_kv_heads * head_dim; }
};

inline constexpr Shape kShapes[] = {
    {"tiny", 256, 256, 4, 2, 64, 256},
    {"7b", 4096, 11008, 32, 32, 128, 32000},
    {"13b", 5120, 13824, 40, 40, 128, 32000},
    {"70b", 8192, 28672, 64, 8, 128, 32000},
};

struct Work {
  const Shape* shape;
  Settings settings;
  std::string only;                // an op; empty: all
  std::vector<int64_t> few, many;  // tokens of a matmul
  std::vector<int64_t> depths;     // of decode attention
  std::vector<int64_t> prompts;    // of prefill attention

  bool wants(const std::string& op) const { return only.empty() || only == op; }
};

// Rows {"op", "shape", "tokens", "bytes", "ops", "us", ...}. False if the device is broken.
bool time_matmuls(const Machine& machine, const Work& work);
bool time_attention(const Machine& machine, const Work& work);
bool time_others(const Machine& machine, const Work& work);

}  // namespace bench
