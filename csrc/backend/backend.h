// The five ops of a layer, and what stands around them. A layer is written once over these
// (model/stage.cpp); the CPU and device backends implement them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/batch.h"
#include "kernels/args.h"
#include "quant/matrix.h"

namespace llama2q {

// Memory that a backend computes in.
class BackendMemory {
 public:
  virtual ~BackendMemory() = default;
  virtual char* data() = 0;
};

// A value that is NaN or infinite, or too large for the KV cache's type.
struct Fault {
  int64_t layer;  // -1: none
  const char* op;
};

inline constexpr int64_t kMostLargest = 64;

// The tokens of a pass over the layers and what is asked of it; pointers are host memory.
struct Pass {
  const Batch* batch;
  const int32_t* token_ids;    // i32 [n_tokens]; null: rows come from another backend
  const int32_t* output_rows;  // i32 [n_rows], ascending indices of tokens
  int64_t n_rows;
};

// Rows, caches and weights that ops take are this backend's memory: what rows() and place()
// returned. An op that returns bool says whether all it met was finite, or true where only finish()
// knows.
class Backend {
 public:
  virtual ~Backend() = default;

  // Whether its memory is the host's: then place() returns what it gets, and ops take any pointer.
  virtual bool is_host() const = 0;
  // Bytes of the host's memory that its work space takes now.
  virtual int64_t work_bytes() const = 0;
  // What it had to do without, for the user; empty if nothing.
  virtual std::string note() const { return {}; }
  // Outputs of a pass, at most.
  virtual int64_t most_rows() const = 0;
  // At least so many floats; what was there is lost if they have to grow.
  virtual float* rows(Rows which, int64_t floats) = 0;
  virtual void copy_in(const float* host, int64_t floats, float* rows) = 0;
  virtual void copy_out(const float* rows, int64_t floats, float* host) = 0;

  // For the KV cache; zero where the system gives such memory for nothing.
  virtual std::unique_ptr<BackendMemory> allocate(int64_t bytes, bool in_large_blocks) = 0;
  virtual void copy_blocks(const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                           const int32_t* destination, int64_t n) = 0;
  // Weights of the host -> the same weights where the ops can read them, for as long as the
  // backend lives.
  virtual LayerView place(const LayerView& layer) = 0;
  virtual EmbeddingView place(const EmbeddingView& table) = 0;
  virtual MatrixView place(const MatrixView& matrix) = 0;
  virtual const float* place(const float* norm, int64_t dim) = 0;

  // A pass: begin, then replay, or the ops between record and end_record; then finish. A key names
  // what is done for a batch of this shape; what was recorded under it is done again at once.
  virtual void begin(const Pass& pass) = 0;
  virtual bool replay(uint64_t key) = 0;
  virtual void record() = 0;
  virtual void end_record(uint64_t key, bool keep) = 0;
  virtual Fault finish() = 0;
  // The k largest of each of n_rows rows of logits, descending, ties to the lower id -> values,
  // ids [n_rows, k] of the host, behind the ops of a pass, before finish(). k <= kMostLargest.
  virtual void select(int64_t n_rows, int64_t vocab_size, int64_t k, const float* logits,
                      float* values, int32_t* ids) = 0;

  // The pass's token_ids -> x f32 [n, dim]. The ids have been checked.
  virtual void embed(const EmbeddingView& table, const Pass& pass, float* x) = 0;
  // RMSNorm, activation quantization, wq/wk/wv, RoPE; appends K and V. x [n, dim] -> q [n, dim].
  virtual bool qkv(const LayerView& layer, float eps, const Batch& batch, const KvLayerView& cache,
                   const float* x, float* q) = 0;
  // Fused attention over the block tables. q, attended: f32 [n, n_heads * head_dim].
  virtual void attend(const LayerView& layer, const Batch& batch, const KvLayerView& cache,
                      const float* q, float* attended) = 0;
  // x [n, dim] += wo @ attended [n, dim].
  virtual bool project(const LayerView& layer, int64_t n, const float* attended, float* x) = 0;
  // RMSNorm, quantization, w1/w3, SwiGLU. x [n, dim] -> hidden f32 [n, hidden_dim].
  virtual bool gate_up(const LayerView& layer, float eps, int64_t n, const float* x,
                       float* hidden) = 0;
  // x [n, dim] += w2 @ hidden [n, hidden_dim].
  virtual bool down(const LayerView& layer, int64_t n, const float* hidden, float* x) = 0;
  // The pass's output_rows of x: the final norm, and the output matmul unless matrix is null.
  // x [n, dim] -> y f32 [n_rows, vocab_size], or [n_rows, dim] without a matrix.
  virtual bool output(const float* norm, const MatrixView* matrix, int64_t dim, float eps,
                      const Pass& pass, const float* x, float* y) = 0;
};

}  // namespace llama2q
