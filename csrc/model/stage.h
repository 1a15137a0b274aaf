// Consecutive layers on one backend: their weights, their part of the KV cache, the rows between.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/kv_cache.h"
#include "model/read_ahead.h"
#include "model/weights.h"

namespace llama2q {

enum class Output { kLogits, kHidden };

// What is asked of the output rows, and where it goes on the host.
struct Answer {
  Output output;
  float* values;  // f32 [n_rows, vocab_size or dim]; if k is not 0, [n_rows, k]
  int64_t k;      // 0, or the k largest logits of each row alone, descending, with their ids
  int32_t* ids;   // i32 [n_rows, k]
};

class Stage {
 public:
  // Layers [first, first + n_layers) of the model, and its ends if the stage has them. The host's
  // weights are borrowed where the backend computes in its memory.
  Stage(const Config& config, const Weights& weights, std::unique_ptr<Backend> backend,
        int64_t first, int64_t n_layers, KvType kv_type, int64_t n_blocks);

  int64_t first() const { return first_; }
  int64_t end() const { return first_ + static_cast<int64_t>(layers_.size()); }
  Backend& backend() { return *backend_; }
  const Backend& backend() const { return *backend_; }
  const LayerView& layer(int64_t index) const {
    return layers_[static_cast<size_t>(index - first_)];
  }
  KvCache& cache() { return *cache_; }
  const KvLayerView& cache_of(int64_t layer) const { return cache_->layer(layer - first_); }
  const EmbeddingView& tok_embeddings() const { return tok_embeddings_; }

  // From now on, passes take the weights of the layers from this reader.
  void set_read_ahead(std::unique_ptr<ReadAhead> reader) { read_ahead_ = std::move(reader); }

  // The rows that a pass of n tokens begins with and leaves behind: f32 [n, dim].
  float* x(int64_t n) { return backend_->rows(Rows::kX, n * config_.dim); }

  // Runs the layers, with the embedding before them where the pass has token_ids and the output
  // behind them where it has output_rows. between_layers may throw. Throws NonFinite.
  void run(const Pass& pass, const Answer& answer, const std::function<void()>& between_layers);

  // The beginning of a pass over the host's layers where others compute these: the embedding, and
  // for each layer when its weights are read.
  const float* embed(const Pass& pass);
  void enter_layer(int64_t index, const std::function<void()>& between_layers);
  void leave_layer(int64_t index);

  // The end of the model alone.
  void run_output(const Pass& pass, Output output, const float* x, float* y);

 private:
  int64_t width_of(Output output) const {
    return output == Output::kLogits ? config_.vocab_size : config_.dim;
  }
  float* y_of(int64_t n_rows, const Answer& answer);
  void finish(int64_t n_rows, const Answer& answer, const float* y);
  // run() for as many output rows as the backend has room for.
  void run_pass(const Pass& pass, const Answer& answer,
                const std::function<void()>& between_layers);
  void run_layers(const Pass& pass, const std::function<void()>& between_layers, float* x);

  const Config config_;
  const std::unique_ptr<Backend> backend_;
  const int64_t first_;
  std::vector<LayerView> layers_;
  EmbeddingView tok_embeddings_{};  // of the first stage
  const float* norm_ = nullptr;     // of the last
  MatrixView output_{};
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<ReadAhead> read_ahead_;
};

// Throws NonFinite where an op met a value that is none.
void require_finite(bool finite, int64_t layer, const char* op);

}  // namespace llama2q
