#include "model/stage.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"

namespace llama2q {
namespace {

// Tokens of passes that are recorded, at most.
constexpr int64_t kRecordedTokens = 16;

// What a pass of this shape does, as far as a recording may depend on it; 0: not worth recording.
uint64_t key_of(const Pass& pass, Output output) {
  const int64_t n = pass.batch->n_tokens;
  if (n > kRecordedTokens) return 0;
  return static_cast<uint64_t>(
      ((n * (kRecordedTokens + 1) + pass.n_rows) * 2 + (output == Output::kHidden ? 1 : 0)) * 2 +
      (pass.token_ids != nullptr ? 1 : 0));
}

// A recording that is thrown away unless it was kept.
class Recording {
 public:
  Recording(Backend& backend, uint64_t key) : backend_(backend), key_(key) {
    if (key_ != 0) backend_.record();
  }
  ~Recording() {
    if (key_ != 0 && !kept_) backend_.end_record(key_, false);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void keep() {
    kept_ = true;
    if (key_ != 0) backend_.end_record(key_, true);
  }

 private:
  Backend& backend_;
  const uint64_t key_;
  bool kept_ = false;
};

}  // namespace

void require_finite(bool finite, int64_t layer, const char* op) {
  if (finite) return;
  throw NonFinite("layer " + std::to_string(layer) + ", " + op +
                  ": a value became NaN or infinite (or too large for the KV cache's type); the "
                  "weights are damaged, or kv_dtype=\"f32\" is needed");
}

Stage::Stage(const Config& config, const Weights& weights, std::unique_ptr<Backend> backend,
             int64_t first, int64_t n_layers, KvType kv_type, int64_t n_blocks)
    : config_(config), backend_(std::move(backend)), first_(first) {
  if (first == 0) tok_embeddings_ = backend_->place(weights.tok_embeddings);
  for (int64_t i = first; i < first + n_layers; ++i) {
    layers_.push_back(backend_->place(weights.layers[static_cast<size_t>(i)]));
  }
  if (first + n_layers == config.n_layers) {
    norm_ = backend_->place(weights.norm, config.dim);
    output_ = backend_->place(weights.output);
  }
  cache_ = std::make_unique<KvCache>(*backend_, kv_type, n_layers, n_blocks, config.n_kv_heads,
                                     config.head_dim());
}

void Stage::run(const Pass& pass, const Answer& answer,
                const std::function<void()>& between_layers) {
  const int64_t most = backend_->most_rows();
  if (pass.n_rows <= most) return run_pass(pass, answer, between_layers);
  Pass part = pass;
  part.n_rows = 0;
  run_pass(part, answer, between_layers);
  part.token_ids = nullptr;
  const int64_t width = answer.k == 0 ? width_of(answer.output) : answer.k;
  for (int64_t first = 0; first < pass.n_rows; first += most) {
    between_layers();
    part.output_rows = pass.output_rows + first;
    part.n_rows = std::min(most, pass.n_rows - first);
    Answer rest = answer;
    rest.values += first * width;
    if (rest.k != 0) rest.ids += first * width;
    float* y = y_of(part.n_rows, rest);
    backend_->begin(part);
    run_output(part, rest.output, x(pass.batch->n_tokens), y);
    finish(part.n_rows, rest, y);
  }
}

void Stage::run_pass(const Pass& pass, const Answer& answer,
                     const std::function<void()>& between_layers) {
  float* rows = x(pass.batch->n_tokens);
  float* y = y_of(pass.n_rows, answer);
  backend_->begin(pass);
  const uint64_t key = key_of(pass, answer.output);
  if (key == 0 || !backend_->replay(key)) {
    Recording recording(*backend_, key);
    if (pass.token_ids != nullptr) backend_->embed(tok_embeddings_, pass, rows);
    run_layers(pass, between_layers, rows);
    if (pass.n_rows != 0) {
      between_layers();
      run_output(pass, answer.output, rows, y);
    }
    recording.keep();
  }
  finish(pass.n_rows, answer, y);
}

// Where the output is computed.
float* Stage::y_of(int64_t n_rows, const Answer& answer) {
  if (n_rows == 0 || (backend_->is_host() && answer.k == 0)) return answer.values;
  return backend_->rows(Rows::kOutput, n_rows * width_of(answer.output));
}

void Stage::finish(int64_t n_rows, const Answer& answer, const float* y) {
  const bool selects = answer.k != 0 && n_rows != 0;
  if (selects) {
    backend_->select(n_rows, config_.vocab_size, answer.k, y, answer.values, answer.ids);
  }
  const Fault fault = backend_->finish();
  require_finite(fault.layer < 0, fault.layer, fault.op);
  if (!selects && y != answer.values) {
    backend_->copy_out(y, n_rows * width_of(answer.output), answer.values);
  }
}

const float* Stage::embed(const Pass& pass) {
  float* rows = x(pass.batch->n_tokens);
  backend_->begin(pass);
  backend_->embed(tok_embeddings_, pass, rows);
  const Fault fault = backend_->finish();
  require_finite(fault.layer < 0, fault.layer, fault.op);
  return rows;
}

void Stage::enter_layer(int64_t index, const std::function<void()>& between_layers) {
  between_layers();
  if (read_ahead_) read_ahead_->acquire(index - first_, between_layers);
}

void Stage::leave_layer(int64_t index) {
  if (read_ahead_) read_ahead_->release(index - first_);
}

void Stage::run_layers(const Pass& pass, const std::function<void()>& between_layers, float* x) {
  const Batch& batch = *pass.batch;
  const int64_t n = batch.n_tokens;
  float* q = backend_->rows(Rows::kQ, n * config_.dim);
  float* attended = backend_->rows(Rows::kAttended, n * config_.dim);
  float* hidden = backend_->rows(Rows::kHidden, n * config_.hidden_dim);
  for (int64_t i = first_; i < end(); ++i) {
    enter_layer(i, between_layers);
    const LayerView& weights = layer(i);
    const KvLayerView& cache = cache_of(i);
    require_finite(backend_->qkv(weights, config_.norm_eps, batch, cache, x, q), i, "qkv");
    backend_->attend(weights, batch, cache, q, attended);
    require_finite(backend_->project(weights, n, attended, x), i, "project");
    require_finite(backend_->gate_up(weights, config_.norm_eps, n, x, hidden), i, "gate_up");
    require_finite(backend_->down(weights, n, hidden, x), i, "down");
    leave_layer(i);
  }
}

void Stage::run_output(const Pass& pass, Output output, const float* x, float* y) {
  const MatrixView* matrix = output == Output::kLogits ? &output_ : nullptr;
  require_finite(backend_->output(norm_, matrix, config_.dim, config_.norm_eps, pass, x, y),
                 config_.n_layers, "output");
}

}  // namespace llama2q
