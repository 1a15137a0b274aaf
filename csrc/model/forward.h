// The forward pass: the ragged step, and each op of a layer for those who run layers one by one.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "backend/backend.h"
#include "base/buffer.h"
#include "model/kv_cache.h"
#include "model/read_ahead.h"
#include "model/weights.h"

namespace llama2q {

enum class Output { kLogits, kHidden };

// Arguments of Forward::step; pointers are borrowed for the call.
struct StepArgs {
  const int32_t* token_ids;          // i32 [n_tokens]
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  int64_t n_tokens;
  const int32_t* block_tables;  // i32 [n_sequences, max_blocks]
  int64_t n_sequences;
  int64_t max_blocks;
  const int32_t* output_rows;  // i32 [n_rows], strictly ascending indices of tokens
  int64_t n_rows;
  Output output;
};

class Forward {
 public:
  Forward(const Config& config, Weights weights, std::unique_ptr<Backend> backend,
          std::unique_ptr<KvCache> cache);

  const Config& config() const { return config_; }
  KvCache& cache() { return *cache_; }
  int64_t output_width(Output output) const {
    return output == Output::kLogits ? config_.vocab_size : config_.dim;
  }

  // From now on, steps take the weights of layers from this reader.
  void set_read_ahead(std::unique_ptr<ReadAhead> reader) { read_ahead_ = std::move(reader); }

  // Bytes of work space held now, and what steps make of it that have n_tokens tokens and ask
  // for n_rows rows at most; group_size is that of the quantized matrices, 0 if all are dense.
  int64_t work_bytes() const;
  static int64_t work_bytes(const KernelTable& kernels, const Config& config, int64_t group_size,
                            int n_threads, int64_t n_tokens, int64_t n_rows);

  // Runs the tokens in chunks of at most 512; out f32 [n_rows, output_width]. between_layers is
  // called before every layer and may throw to stop the step. Throws InvalidArgument before any
  // work if the arguments are not sound, NonFinite if a value is NaN or infinite.
  void step(const StepArgs& args, const std::function<void()>& between_layers, float* out);

  // The ops; x, q, attended: f32 [n, dim], hidden: f32 [n, hidden_dim].
  void embed(const int32_t* token_ids, int64_t n, float* x);
  void qkv(int64_t layer, const Batch& batch, const float* x, float* q);
  void attend(int64_t layer, const Batch& batch, const float* q, float* attended);
  void project(int64_t layer, int64_t n, const float* attended, float* x);
  void gate_up(int64_t layer, int64_t n, const float* x, float* hidden);
  void down(int64_t layer, int64_t n, const float* hidden, float* x);
  void output(Output kind, int64_t n, const float* x, float* out);

  // A checked batch with its RoPE factors.
  Batch make_batch(const StepArgs& args, int64_t begin, int64_t end) const;
  void check_tokens(const int32_t* token_ids, int64_t n) const;

 private:
  const LayerView& layer_at(int64_t layer) const;
  void check_step(const StepArgs& args) const;

  Config config_;
  Weights weights_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<ReadAhead> read_ahead_;
  Buffer<float> x_, q_, attended_, hidden_, rows_;
};

}  // namespace llama2q
