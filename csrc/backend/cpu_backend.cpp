#include "backend/cpu_backend.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/check.h"

namespace llama2q {
namespace {

// Rows handed to a thread at a time.
constexpr int64_t kRowGrain = 4;

bool is_quantized(const MatrixView& matrix) { return matrix.group_size != 0; }

// Bands that a job's output spans: pairs of bands for SwiGLU.
int64_t job_bands(const MatmulArgs& job) {
  return job.epilogue == Epilogue::kSwiglu ? job.matrix->n_bands / 2 : job.matrix->n_bands;
}

}  // namespace

CpuBackend::CpuBackend(const KernelTable& kernels, int n_threads)
    : kernels_(kernels), pool_(n_threads) {}

int64_t CpuBackend::work_bytes() const {
  int64_t rows = asked_.bytes();
  for (const Buffer<float>& buffer : rows_) rows += buffer.bytes();
  return rows + normed_.bytes() + codes_.bytes() + wide_codes_.bytes() + scales_.bytes() +
         corrections_.bytes() + keys_.bytes() + values_.bytes() + matmul_scratch_.bytes() +
         attention_bytes();
}

int64_t CpuBackend::work_bytes(const KernelTable& kernels, const WorkShape& shape, int n_threads) {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t widest = std::max(shape.dim, shape.hidden_dim);
  const int64_t n_groups =
      shape.group_size == 0 ? 0 : (widest + shape.group_size - 1) / shape.group_size;
  const int64_t normed = shape.dim * kFloat;
  const bool wide = kernels.wide_codes && shape.n_tokens > 1;
  const int64_t codes = n_groups * shape.group_size * (wide ? 3 : 1);
  const int64_t scales_and_corrections = n_groups * (kFloat + int64_t{sizeof(int32_t)});
  const int64_t keys_and_values = 2 * shape.kv_dim * kFloat;
  const int64_t rows = (3 * shape.dim + shape.hidden_dim) * kFloat;  // x, q, attended, hidden
  return shape.n_tokens * (rows + normed + codes + scales_and_corrections + keys_and_values) +
         shape.n_rows * shape.dim * kFloat +
         (shape.group_size == 0 ? 0 : n_threads * kFloat * matmul_scratch(shape.n_tokens)) +
         attention_bytes(shape, n_threads);
}

bool CpuBackend::prepare(const float* x, const Norm* norm, int64_t n,
                         std::span<const MatrixView* const> readers, ActivationView& view) {
  const int64_t cols = readers.front()->cols;
  int64_t group_size = 0;
  bool dense = false;
  for (const MatrixView* matrix : readers) {
    if (is_quantized(*matrix)) {
      group_size = matrix->group_size;
    } else {
      dense = true;
    }
  }
  view = {.x = x,
          .codes = nullptr,
          .wide_codes = nullptr,
          .scales = nullptr,
          .corrections = nullptr,
          .n_tokens = n};
  float* normed = norm != nullptr ? normed_.reserve(n * cols) : nullptr;
  if (norm != nullptr) view.x = normed;
  const int64_t n_groups = group_size == 0 ? 0 : (cols + group_size - 1) / group_size;
  const int64_t padded = n_groups * group_size;
  const bool wide = kernels_.wide_codes && n > 1;
  int8_t* codes = codes_.reserve(n * padded);
  int16_t* wide_codes = wide ? wide_codes_.reserve(n * padded) : nullptr;
  float* scales = scales_.reserve(n * n_groups);
  int32_t* corrections = corrections_.reserve(n * n_groups);
  if (group_size != 0) {
    view.codes = codes;
    view.wide_codes = wide_codes;
    view.scales = scales;
    view.corrections = corrections;
  }
  const int64_t width = std::max<int64_t>(kernels_.tile_width(n), 1);
  const auto place = [&](int64_t t) {
    const int64_t first = t - t % width;
    return TileRow{.codes = codes + first * padded,
                   .wide_codes = wide ? wide_codes + first * padded : nullptr,
                   .scales = scales + first * n_groups,
                   .corrections = corrections + first * n_groups,
                   .width = std::min(width, n - first),
                   .token = t - first};
  };
  std::atomic<bool> finite{true};
  // Whole tiles: two threads do not write to one cache line.
  const int64_t grain = n > width ? width : kRowGrain;
  pool_.parallel_for(n, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * cols;
      if (norm != nullptr) {
        kernels_.rms_norm(row, norm->weight, cols, norm->eps, normed + t * cols);
        row = normed + t * cols;
      }
      bool good = true;
      if (group_size != 0) {
        good = kernels_.quantize_row(row, cols, group_size, place(t));
      } else if (dense) {
        good = kernels_.all_finite(row, cols);
      }
      if (!good) finite.store(false, std::memory_order_relaxed);
    }
  });
  return finite.load();
}

void CpuBackend::run_matmuls(std::span<const MatmulArgs> jobs) {
  int64_t total = 0;
  bool quantized = false;
  for (const MatmulArgs& job : jobs) {
    total += job_bands(job);
    quantized = quantized || is_quantized(*job.matrix);
  }
  const int64_t share = quantized ? matmul_scratch(jobs.front().input.n_tokens) : 0;
  float* scratch = matmul_scratch_.reserve(share * pool_.n_threads());
  // With many tokens a pair of bands is work enough, and a smaller share waits for the last one.
  const int64_t most = jobs.front().input.n_tokens >= 64 ? 2 : 8;
  const int64_t grain = std::clamp<int64_t>(total / (int64_t{16} * pool_.n_threads()), 1, most);
  pool_.parallel_for(total, grain, [&](int64_t begin, int64_t end, int thread) {
    int64_t first = 0;
    for (const MatmulArgs& job : jobs) {
      const int64_t last = first + job_bands(job);
      const int64_t from = std::max(begin, first), to = std::min(end, last);
      if (from < to) kernels_.matmul(job, from - first, to - first, scratch + thread * share);
      first = last;
    }
  });
}

void CpuBackend::embed(const EmbeddingView& table, const Pass& pass, float* x) {
  for (int64_t t = 0; t < pass.batch->n_tokens; ++t) {
    kernels_.embed(table, pass.token_ids[t], x + t * table.cols);
  }
}

bool CpuBackend::qkv(const LayerView& layer, float eps, const Batch& batch,
                     const KvLayerView& cache, const float* x, float* q) {
  const int64_t n = batch.n_tokens;
  const std::array readers{&layer.wq, &layer.wk, &layer.wv};
  const Norm norm{layer.attention_norm, eps};
  ActivationView input;
  if (!prepare(x, &norm, n, readers, input)) return false;
  float* k = keys_.reserve(n * layer.wk.rows);
  float* v = values_.reserve(n * layer.wv.rows);
  const auto job = [&](const MatrixView& matrix, float* y) {
    return MatmulArgs{&matrix, input, y, matrix.rows, matrix.rows, Epilogue::kStore};
  };
  const std::array jobs{job(layer.wq, q), job(layer.wk, k), job(layer.wv, v)};
  run_matmuls(jobs);
  return append(batch, cache, layer.wq.rows / cache.head_dim, k, v, q);
}

bool CpuBackend::project(const LayerView& layer, int64_t n, const float* attended, float* x) {
  return matmul(layer.wo, n, attended, x, true);
}

bool CpuBackend::gate_up(const LayerView& layer, float eps, int64_t n, const float* x,
                         float* hidden) {
  const int64_t hidden_dim = layer.w2.cols;
  const std::array readers{&layer.w1_w3};
  const Norm norm{layer.ffn_norm, eps};
  ActivationView view;
  if (!prepare(x, &norm, n, readers, view)) return false;
  const std::array jobs{
      MatmulArgs{&layer.w1_w3, view, hidden, hidden_dim, hidden_dim, Epilogue::kSwiglu}};
  run_matmuls(jobs);
  return true;
}

bool CpuBackend::down(const LayerView& layer, int64_t n, const float* hidden, float* x) {
  return matmul(layer.w2, n, hidden, x, true);
}

bool CpuBackend::output(const float* norm, const MatrixView* matrix, int64_t dim, float eps,
                        const Pass& pass, const float* x, float* y) {
  const int64_t n = pass.n_rows;
  float* asked = asked_.reserve(n * dim);
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(x + pass.output_rows[i] * dim, dim, asked + i * dim);
  }
  if (matrix == nullptr) return normalize(asked, {norm, eps}, dim, n, y);
  const std::array readers{matrix};
  const Norm final{norm, eps};
  ActivationView view;
  if (!prepare(asked, &final, n, readers, view)) return false;
  const std::array jobs{MatmulArgs{matrix, view, y, matrix->rows, matrix->rows, Epilogue::kStore}};
  run_matmuls(jobs);
  return true;
}

bool CpuBackend::normalize(const float* x, const Norm& norm, int64_t dim, int64_t n, float* y) {
  bool finite = true;
  for (int64_t t = 0; t < n; ++t) {
    kernels_.rms_norm(x + t * dim, norm.weight, dim, norm.eps, y + t * dim);
    finite = kernels_.all_finite(y + t * dim, dim) && finite;
  }
  return finite;
}

bool CpuBackend::matmul(const MatrixView& matrix, int64_t n, const float* x, float* y, bool add) {
  const std::array readers{&matrix};
  ActivationView view;
  if (!prepare(x, nullptr, n, readers, view)) return false;
  const Epilogue epilogue = add ? Epilogue::kAdd : Epilogue::kStore;
  const std::array jobs{MatmulArgs{&matrix, view, y, matrix.rows, matrix.rows, epilogue}};
  run_matmuls(jobs);
  return true;
}

}  // namespace llama2q
