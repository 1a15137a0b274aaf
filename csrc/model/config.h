// The model's hyperparameters, under Meta's names.
#pragma once

#include <cstdint>

namespace llama2q {

struct Config {
  int64_t dim;
  int64_t hidden_dim;
  int64_t n_layers;
  int64_t n_heads;
  int64_t n_kv_heads;
  int64_t vocab_size;
  float norm_eps;

  int64_t head_dim() const { return dim / n_heads; }
  int64_t kv_dim() const { return n_kv_heads * head_dim(); }

  // Throws InvalidArgument unless the shape is one that a Llama 2 model can have.
  void check() const;
};

}  // namespace llama2q
