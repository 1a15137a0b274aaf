// The ops on this machine's cores. The caller holds a FloatEnv (base/float_env.h); the pool's
// threads set their own.
#pragma once

#include <span>

#include "backend/backend.h"
#include "backend/thread_pool.h"
#include "base/buffer.h"

namespace llama2q {

// What decides the size of a backend's buffers.
struct WorkShape {
  int64_t n_tokens;  // of one pass over the layers
  int64_t dim, hidden_dim, kv_dim, head_dim;
  int64_t heads_per_kv_head;
  int64_t group_size;  // of the quantized matrices; 0 if all are dense
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, int n_threads);

  const KernelTable& kernels() const { return kernels_; }
  int n_threads() const { return pool_.n_threads(); }

  // Bytes that the buffers below have grown to, and what a step of that shape makes of them.
  int64_t work_bytes() const override;
  static int64_t work_bytes(const KernelTable& kernels, const WorkShape& shape, int n_threads);

  void embed(const EmbeddingView& table, const int32_t* token_ids, int64_t n, float* x) override;
  bool qkv(const LayerView& layer, float eps, const Batch& batch, const KvLayerView& cache,
           const float* x, float* q) override;
  void attend(const Batch& batch, const KvLayerView& cache, int64_t n_heads, const float* q,
              float* attended) override;
  bool add_matmul(const MatrixView& matrix, int64_t n, const float* input, float* x) override;
  bool gate_up(const LayerView& layer, float eps, int64_t hidden_dim, int64_t n, const float* x,
               float* hidden) override;
  bool output(const float* norm, const MatrixView& matrix, float eps, int64_t n, const float* x,
              float* logits) override;
  bool final_norm(const float* norm, int64_t dim, float eps, int64_t n, const float* x,
                  float* y) override;
  bool matmul(const MatrixView& matrix, int64_t n, const float* x, float* y) override;

 private:
  struct Norm {
    const float* weight;
    float eps;
  };
  // Normalizes (if asked) and quantizes x [n, cols] for the matrices that read it; false if a value
  // is not finite. The view points into this object's buffers and lives until the next call.
  bool prepare(const float* x, const Norm* norm, int64_t n,
               std::span<const MatrixView* const> readers, ActivationView& view);
  void run_matmuls(std::span<const MatmulArgs> jobs);
  int64_t attention_bytes() const;
  static int64_t attention_bytes(const WorkShape& shape, int n_threads);
  bool append(const Batch& batch, const KvLayerView& cache, int64_t n_heads, const float* k,
              const float* v, float* q);

  const KernelTable& kernels_;
  ThreadPool pool_;
  Buffer<float> normed_;          // [n, cols]
  Buffer<int8_t> codes_;          // n * n_groups * group_size, in tiles (kernels/args.h)
  Buffer<int16_t> wide_codes_;    // as many
  Buffer<float> scales_;          // n * n_groups, in tiles
  Buffer<int32_t> corrections_;   // as many
  Buffer<float> keys_, values_;   // [n, n_kv_heads * head_dim]
  Buffer<float> matmul_scratch_;  // [n_threads, matmul_scratch]
  Buffer<float> scratch_;         // [n_threads, attention_scratch]
  Buffer<float> states_;          // of chunks [n_threads, kStatesPerThread, attention_state]
  Buffer<AttentionTile> tiles_;   // [most_tiles]
};

}  // namespace llama2q
