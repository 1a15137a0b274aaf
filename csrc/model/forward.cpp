#include "model/forward.h"

#include <algorithm>
#include <string>
#include <utility>

#include "backend/cpu_backend.h"
#include "base/check.h"
#include "base/float_env.h"

namespace llama2q {
namespace {

using std::to_string;

// Tokens per pass over the layers: bounds the work space.
constexpr int64_t kStepChunk = 512;

void require_finite(bool finite, int64_t layer, const char* op) {
  if (finite) return;
  throw NonFinite("layer " + to_string(layer) + ", " + op +
                  ": a value became NaN or infinite (or too large for the KV cache's type); the "
                  "weights are damaged, or kv_dtype=\"f32\" is needed");
}

}  // namespace

Forward::Forward(const Config& config, Weights weights, std::unique_ptr<Backend> backend,
                 std::unique_ptr<KvCache> cache)
    : config_(config),
      weights_(std::move(weights)),
      backend_(std::move(backend)),
      cache_(std::move(cache)) {
  config_.check();
  weights_.check(config_);
}

int64_t Forward::work_bytes() const {
  return x_.bytes() + q_.bytes() + attended_.bytes() + hidden_.bytes() + rows_.bytes() +
         backend_->work_bytes();
}

int64_t Forward::work_bytes(const KernelTable& kernels, const Config& config, int64_t group_size,
                            int n_threads, int64_t n_tokens, int64_t n_rows) {
  constexpr int64_t kFloat = sizeof(float);
  config.check();
  require(group_size >= 0 && n_threads >= 1 && n_tokens >= 1 && n_rows >= 0,
          "group_size, n_threads, n_tokens and n_rows are " + to_string(group_size) + ", " +
              to_string(n_threads) + ", " + to_string(n_tokens) + " and " + to_string(n_rows) +
              "; expected at least 0, 1, 1 and 0");
  const int64_t chunk = std::min(kStepChunk, n_tokens);
  const WorkShape shape{.n_tokens = chunk,
                        .dim = config.dim,
                        .hidden_dim = config.hidden_dim,
                        .kv_dim = config.kv_dim(),
                        .head_dim = config.head_dim(),
                        .heads_per_kv_head = config.n_heads / config.n_kv_heads,
                        .group_size = group_size};
  return chunk * (3 * config.dim + config.hidden_dim) * kFloat  // x_, q_, attended_, hidden_
         + std::min(n_rows, chunk) * config.dim * kFloat        // rows_
         + CpuBackend::work_bytes(kernels, shape, n_threads);
}

const LayerView& Forward::layer_at(int64_t layer) const {
  require(layer >= 0 && layer < config_.n_layers,
          "layer is " + to_string(layer) + "; the model has " + to_string(config_.n_layers));
  return weights_.layers[static_cast<size_t>(layer)];
}

void Forward::check_tokens(const int32_t* token_ids, int64_t n) const {
  for (int64_t t = 0; t < n; ++t) {
    require(token_ids[t] >= 0 && token_ids[t] < config_.vocab_size,
            "token_ids[" + to_string(t) + "] is " + to_string(token_ids[t]) +
                "; the vocabulary has " + to_string(config_.vocab_size) + " tokens");
  }
}

void Forward::check_step(const StepArgs& args) const {
  check_tokens(args.token_ids, args.n_tokens);
  for (int64_t i = 0; i < args.n_rows; ++i) {
    const int32_t row = args.output_rows[i];
    require(row >= 0 && row < args.n_tokens, "output_rows[" + to_string(i) + "] is " +
                                                 to_string(row) + "; the step has " +
                                                 to_string(args.n_tokens) + " tokens");
    require(
        i == 0 || args.output_rows[i - 1] < row,
        "output_rows must be strictly ascending; row " + to_string(i) + " is " + to_string(row));
  }
  const Batch whole{.n_tokens = args.n_tokens,
                    .positions = args.positions,
                    .sequence_of_token = args.sequence_of_token,
                    .block_tables = args.block_tables,
                    .n_sequences = args.n_sequences,
                    .max_blocks = args.max_blocks,
                    .cos = {},
                    .sin = {}};
  check_batch(whole, cache_->n_blocks());
}

Batch Forward::make_batch(const StepArgs& args, int64_t begin, int64_t end) const {
  const FloatEnv environment;
  Batch batch{.n_tokens = end - begin,
              .positions = args.positions + begin,
              .sequence_of_token = args.sequence_of_token + begin,
              .block_tables = args.block_tables,
              .n_sequences = args.n_sequences,
              .max_blocks = args.max_blocks,
              .cos = {},
              .sin = {}};
  check_batch(batch, cache_->n_blocks());
  fill_rope(batch, weights_.inv_freq);
  return batch;
}

void Forward::step(const StepArgs& args, const std::function<void()>& between_layers, float* out) {
  check_step(args);
  const int64_t dim = config_.dim;
  const int64_t chunk = std::min(kStepChunk, args.n_tokens);
  float* x = x_.reserve(chunk * dim);
  float* q = q_.reserve(chunk * dim);
  float* attended = attended_.reserve(chunk * dim);
  float* hidden = hidden_.reserve(chunk * config_.hidden_dim);
  int64_t row = 0;
  for (int64_t begin = 0; begin < args.n_tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, args.n_tokens), n = end - begin;
    const Batch batch = make_batch(args, begin, end);
    embed(args.token_ids + begin, n, x);
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      between_layers();
      if (read_ahead_) read_ahead_->acquire(layer, between_layers);
      qkv(layer, batch, x, q);
      attend(layer, batch, q, attended);
      project(layer, n, attended, x);
      gate_up(layer, n, x, hidden);
      down(layer, n, hidden, x);
      if (read_ahead_) read_ahead_->release(layer);
    }
    const int64_t first = row;
    while (row < args.n_rows && args.output_rows[row] < end) ++row;
    if (row == first) continue;
    between_layers();
    float* rows = rows_.reserve((row - first) * dim);
    for (int64_t i = first; i < row; ++i) {
      std::copy_n(x + (args.output_rows[i] - begin) * dim, dim, rows + (i - first) * dim);
    }
    output(args.output, row - first, rows, out + first * output_width(args.output));
  }
}

void Forward::embed(const int32_t* token_ids, int64_t n, float* x) {
  const FloatEnv environment;
  backend_->embed(weights_.tok_embeddings, token_ids, n, x);
}

void Forward::qkv(int64_t layer, const Batch& batch, const float* x, float* q) {
  const FloatEnv environment;
  const LayerView& weights = layer_at(layer);
  require_finite(backend_->qkv(weights, config_.norm_eps, batch, cache_->layer(layer), x, q), layer,
                 "qkv");
}

void Forward::attend(int64_t layer, const Batch& batch, const float* q, float* attended) {
  const FloatEnv environment;
  layer_at(layer);
  backend_->attend(batch, cache_->layer(layer), config_.n_heads, q, attended);
}

void Forward::project(int64_t layer, int64_t n, const float* attended, float* x) {
  const FloatEnv environment;
  require_finite(backend_->add_matmul(layer_at(layer).wo, n, attended, x), layer, "project");
}

void Forward::gate_up(int64_t layer, int64_t n, const float* x, float* hidden) {
  const FloatEnv environment;
  require_finite(
      backend_->gate_up(layer_at(layer), config_.norm_eps, config_.hidden_dim, n, x, hidden), layer,
      "gate_up");
}

void Forward::down(int64_t layer, int64_t n, const float* hidden, float* x) {
  const FloatEnv environment;
  require_finite(backend_->add_matmul(layer_at(layer).w2, n, hidden, x), layer, "down");
}

void Forward::output(Output kind, int64_t n, const float* x, float* out) {
  const FloatEnv environment;
  const bool finite =
      kind == Output::kLogits
          ? backend_->output(weights_.norm, weights_.output, config_.norm_eps, n, x, out)
          : backend_->final_norm(weights_.norm, config_.dim, config_.norm_eps, n, x, out);
  require_finite(finite, config_.n_layers, "output");
}

}  // namespace llama2q
