// The five ops of a layer, and what stands around them. A layer is written once over these
// (model/forward.cpp); the CPU and CUDA backends implement them.
#pragma once

#include <cstdint>

#include "backend/batch.h"
#include "kernels/args.h"
#include "quant/matrix.h"

namespace llama2q {

// The weights of one layer; norms are f32 [dim].
struct LayerView {
  const float* attention_norm;
  MatrixView wq, wk, wv;  // [n_heads * head_dim | n_kv_heads * head_dim, dim]
  MatrixView wo;          // [dim, n_heads * head_dim]
  const float* ffn_norm;
  MatrixView w1_w3;  // bands of w1 and w3 alternate; rows = 2 * 16 * ceil(hidden_dim / 16)
  MatrixView w2;     // [dim, hidden_dim]
};

// Every op takes n rows and says whether all it met was finite.
class Backend {
 public:
  virtual ~Backend() = default;

  // Bytes of work space held now.
  virtual int64_t work_bytes() const = 0;

  // token_ids i32 [n] -> x f32 [n, dim]. The ids have been checked.
  virtual void embed(const EmbeddingView& table, const int32_t* token_ids, int64_t n, float* x) = 0;
  // RMSNorm, activation quantization, wq/wk/wv, RoPE; appends K and V. x [n, dim] -> q [n, dim].
  virtual bool qkv(const LayerView& layer, float eps, const Batch& batch, const KvLayerView& cache,
                   const float* x, float* q) = 0;
  // Fused attention over the block tables. q, attended: f32 [n, n_heads * head_dim].
  virtual void attend(const Batch& batch, const KvLayerView& cache, int64_t n_heads, const float* q,
                      float* attended) = 0;
  // x [n, rows] += matrix @ input [n, cols]: wo over the attended heads, w2 over the hidden rows.
  virtual bool add_matmul(const MatrixView& matrix, int64_t n, const float* input, float* x) = 0;
  // RMSNorm, quantization, w1/w3, SwiGLU. x [n, dim] -> hidden f32 [n, hidden_dim].
  virtual bool gate_up(const LayerView& layer, float eps, int64_t hidden_dim, int64_t n,
                       const float* x, float* hidden) = 0;
  // The final norm and the output matmul. x [n, dim] -> logits f32 [n, vocab_size].
  virtual bool output(const float* norm, const MatrixView& matrix, float eps, int64_t n,
                      const float* x, float* logits) = 0;
  // The final norm alone. x [n, dim] -> y [n, dim].
  virtual bool final_norm(const float* norm, int64_t dim, float eps, int64_t n, const float* x,
                          float* y) = 0;
  // y [n, rows] = matrix @ x [n, cols].
  virtual bool matmul(const MatrixView& matrix, int64_t n, const float* x, float* y) = 0;
};

}  // namespace llama2q
