// Views of all weights of a model; the arrays are owned by the caller.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace llama2q {

struct Weights {
  EmbeddingView tok_embeddings;
  std::vector<LayerView> layers;
  const float* norm;
  MatrixView output;
  std::vector<double> inv_freq;   // f64 [head_dim / 2]
  double attention_factor = 1.0;  // on cos and sin of RoPE

  // Throws InvalidArgument naming the first matrix whose shape differs from the config, and where
  // matrices that read one activation differ in group size.
  void check(const Config& config) const;
};

}  // namespace llama2q
