// The ops on this machine's cores. The caller holds a FloatEnv (base/float_env.h); the pool's
// threads set their own.
#pragma once

#include <limits>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/thread_pool.h"
#include "base/buffer.h"

namespace llama2q {

// What decides the size of a backend's buffers.
struct WorkShape {
  int64_t n_tokens, n_rows;  // of one pass over the layers
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

  bool is_host() const override { return true; }
  int64_t most_rows() const override { return std::numeric_limits<int64_t>::max(); }
  float* rows(Rows which, int64_t floats) override;
  void copy_in(const float* host, int64_t floats, float* rows) override;
  void copy_out(const float* rows, int64_t floats, float* host) override;
  std::unique_ptr<BackendMemory> allocate(int64_t bytes, bool in_large_blocks) override;
  void copy_blocks(const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                   const int32_t* destination, int64_t n) override;
  LayerView place(const LayerView& layer) override { return layer; }
  EmbeddingView place(const EmbeddingView& table) override { return table; }
  MatrixView place(const MatrixView& matrix) override { return matrix; }
  const float* place(const float* norm, int64_t) override { return norm; }

  void begin(const Pass&) override {}
  bool replay(uint64_t) override { return false; }
  void record() override {}
  void end_record(uint64_t, bool) override {}
  Fault finish() override { return {-1, nullptr}; }
  void select(int64_t n_rows, int64_t vocab_size, int64_t k, const float* logits, float* values,
              int32_t* ids) override;

  void embed(const EmbeddingView& table, const Pass& pass, float* x) override;
  bool qkv(const LayerView& layer, float eps, const Batch& batch, const KvLayerView& cache,
           const float* x, float* q) override;
  void attend(const LayerView& layer, const Batch& batch, const KvLayerView& cache, const float* q,
              float* attended) override;
  bool project(const LayerView& layer, int64_t n, const float* attended, float* x) override;
  bool gate_up(const LayerView& layer, float eps, int64_t n, const float* x,
               float* hidden) override;
  bool down(const LayerView& layer, int64_t n, const float* hidden, float* x) override;
  bool output(const float* norm, const MatrixView* matrix, int64_t dim, float eps, const Pass& pass,
              const float* x, float* y) override;

  // y [n, rows] = matrix @ x [n, cols]; with add, that much is added to y.
  bool matmul(const MatrixView& matrix, int64_t n, const float* x, float* y, bool add = false);
  void attend(const Batch& batch, const KvLayerView& cache, int64_t n_heads, const float* q,
              float* attended);

 private:
  struct Norm {
    const float* weight;
    float eps;
  };
  // Normalizes (if asked) and quantizes x [n, cols] for the matrices that read it; false if a value
  // is not finite. The view points into this object's buffers and lives until the next call.
  bool prepare(const float* x, const Norm* norm, int64_t n,
               std::span<const MatrixView* const> readers, ActivationView& view);
  bool normalize(const float* x, const Norm& norm, int64_t dim, int64_t n, float* y);
  void run_matmuls(std::span<const MatmulArgs> jobs);
  int64_t attention_bytes() const;
  static int64_t attention_bytes(const WorkShape& shape, int n_threads);
  bool append(const Batch& batch, const KvLayerView& cache, int64_t n_heads, const float* k,
              const float* v, float* q);

  const KernelTable& kernels_;
  ThreadPool pool_;
  Buffer<float> rows_[kRows];
  Buffer<float> asked_;           // the output rows of x [n_rows, dim]
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
