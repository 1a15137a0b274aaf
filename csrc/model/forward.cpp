#include "model/forward.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/float_env.h"

namespace llama2q {
namespace {

using std::to_string;

// A pass of tokens without positions, for ops that need none.
Batch plain_batch(int64_t n) {
  return {.n_tokens = n,
          .positions = nullptr,
          .sequence_of_token = nullptr,
          .block_tables = nullptr,
          .n_sequences = 0,
          .max_blocks = 0,
          .cos = {},
          .sin = {}};
}

Pass pass_of(const Batch& batch) { return {&batch, nullptr, nullptr, 0}; }

// Rows of an op on the host, and where a backend that is elsewhere keeps such.
struct HostRows {
  Rows which;
  float* data;
  int64_t floats;
};

// Runs op(in, out) in the backend's memory; `out` is read, too, if it is updated.
template <class Op>
void run_op(Backend& backend, const Pass& pass, int64_t layer, const char* name, HostRows in,
            HostRows out, bool updates, Op op) {
  const FloatEnv environment;
  backend.begin(pass);
  if (backend.is_host()) {
    require_finite(op(in.data, out.data), layer, name);
    return;
  }
  float* x = backend.rows(in.which, in.floats);
  float* y = backend.rows(out.which, out.floats);
  backend.copy_in(in.data, in.floats, x);
  if (updates) backend.copy_in(out.data, out.floats, y);
  op(x, y);
  const Fault fault = backend.finish();
  require_finite(fault.layer < 0, fault.layer, fault.op);
  backend.copy_out(y, out.floats, out.data);
}

std::vector<Share> one_share(std::unique_ptr<Backend> backend, int64_t n_layers) {
  std::vector<Share> shares;
  shares.push_back({std::move(backend), n_layers});
  return shares;
}

// An op only reads its input.
float* input(const float* x) { return const_cast<float*>(x); }

}  // namespace

Forward::Forward(const Config& config, Weights weights, std::vector<Share> shares, KvType kv_type,
                 int64_t n_blocks)
    : config_(config), weights_(std::move(weights)), kv_type_(kv_type), n_blocks_(n_blocks) {
  config_.check();
  weights_.check(config_);
  int64_t first = 0;
  for (Share& share : shares) {
    require(share.n_layers >= 1 && share.n_layers <= config_.n_layers - first,
            "a share of " + to_string(share.n_layers) + " layers; " +
                to_string(config_.n_layers - first) + " are left");
    require(first == 0 || !share.backend->is_host(), "the host's layers are the first ones");
    stages_.push_back(std::make_unique<Stage>(config_, weights_, std::move(share.backend), first,
                                              share.n_layers, kv_type, n_blocks));
    first += share.n_layers;
  }
  require(first == config_.n_layers,
          "the shares have " + to_string(first) + " layers of " + to_string(config_.n_layers));
}

Forward::Forward(const Config& config, Weights weights, std::unique_ptr<Backend> backend,
                 KvType kv_type, int64_t n_blocks)
    : Forward(config, std::move(weights), one_share(std::move(backend), config.n_layers), kv_type,
              n_blocks) {}

void Forward::set_read_ahead(std::unique_ptr<ReadAhead> reader) {
  require(n_host_layers() > 0, "read_ahead: the host has no layers");
  stages_.front()->set_read_ahead(std::move(reader));
}

void Forward::set_layer_stream(int64_t from_tokens) {
  require(from_tokens >= 1, "layer_stream: from_tokens is " + to_string(from_tokens));
  require(n_host_layers() > 0 && stages_.size() > 1,
          "layer_stream: there are no layers of the host beside those of a device");
  auto* device = dynamic_cast<DeviceBackend*>(&stages_[1]->backend());
  require(device != nullptr, "layer_stream: the second backend is no device");
  layer_stream_ =
      std::make_unique<LayerStream>(config_, weights_, *device, kv_type_, n_blocks_, from_tokens);
}

int64_t Forward::n_host_layers() const {
  const Stage& first = *stages_.front();
  return first.backend().is_host() ? first.end() : 0;
}

std::vector<std::string> Forward::notes() const {
  std::vector<std::string> notes;
  for (const auto& stage : stages_) {
    const std::string note = stage->backend().note();
    if (!note.empty()) notes.push_back(note);
  }
  return notes;
}

void Forward::copy_blocks(const int32_t* source, const int32_t* destination, int64_t n) {
  for (const auto& stage : stages_) stage->cache().copy_blocks(source, destination, n);
}

int64_t Forward::block_bytes() const {
  int64_t bytes = 0;
  for (const auto& stage : stages_) bytes += stage->cache().block_bytes();
  return bytes;
}

void Forward::check_block(int32_t block) const {
  require(block >= 0 && block < n_blocks_,
          "block " + to_string(block) + " is out of range; there are " + to_string(n_blocks_));
}

void Forward::read_blocks(const int32_t* blocks, int64_t n, char* host) const {
  for (int64_t i = 0; i < n; ++i) check_block(blocks[i]);
  for (int64_t i = 0; i < n; ++i) {
    for (const auto& stage : stages_) {
      stage->cache().read_block(blocks[i], host);
      host += stage->cache().block_bytes();
    }
  }
}

void Forward::write_blocks(const int32_t* blocks, int64_t n, const char* host) {
  std::vector<char> is_written(static_cast<size_t>(n_blocks_), 0);
  for (int64_t i = 0; i < n; ++i) {
    check_block(blocks[i]);
    char& seen = is_written[static_cast<size_t>(blocks[i])];
    require(seen == 0, "block " + to_string(blocks[i]) + " stands twice");
    seen = 1;
  }
  for (int64_t i = 0; i < n; ++i) {
    for (const auto& stage : stages_) {
      stage->cache().write_block(blocks[i], host);
      host += stage->cache().block_bytes();
    }
  }
}

int64_t Forward::work_bytes() const {
  int64_t bytes = x_.bytes();
  for (const auto& stage : stages_) bytes += stage->backend().work_bytes();
  return bytes;
}

int64_t Forward::work_bytes(const KernelTable& kernels, const Config& config, int64_t group_size,
                            int n_threads, int64_t n_tokens, int64_t n_rows) {
  config.check();
  require(group_size >= 0 && n_threads >= 1 && n_tokens >= 1 && n_rows >= 0,
          "group_size, n_threads, n_tokens and n_rows are " + to_string(group_size) + ", " +
              to_string(n_threads) + ", " + to_string(n_tokens) + " and " + to_string(n_rows) +
              "; expected at least 0, 1, 1 and 0");
  const int64_t chunk = std::min(kStepTokens, n_tokens);
  const WorkShape shape{.n_tokens = chunk,
                        .n_rows = std::min(n_rows, chunk),
                        .dim = config.dim,
                        .hidden_dim = config.hidden_dim,
                        .kv_dim = config.kv_dim(),
                        .head_dim = config.head_dim(),
                        .heads_per_kv_head = config.n_heads / config.n_kv_heads,
                        .group_size = group_size};
  return CpuBackend::work_bytes(kernels, shape, n_threads);
}

Stage& Forward::stage_of(int64_t layer) {
  require(layer >= 0 && layer < config_.n_layers,
          "layer is " + to_string(layer) + "; the model has " + to_string(config_.n_layers));
  for (const auto& stage : stages_) {
    if (layer < stage->end()) return *stage;
  }
  return *stages_.back();
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
  const int64_t most = std::min(kMostLargest, config_.vocab_size);
  require(args.answer.k >= 0 && args.answer.k <= most,
          "k is " + to_string(args.answer.k) + "; expected 1 to " + to_string(most));
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
  check_batch(whole, n_blocks_);
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
  check_batch(batch, n_blocks_);
  fill_rope(batch, weights_.inv_freq, weights_.attention_factor);
  return batch;
}

void Forward::step(const StepArgs& args, const std::function<void()>& between_layers) {
  check_step(args);
  const int64_t k = args.answer.k, width = k == 0 ? output_width(args.answer.output) : k;
  const FloatEnv environment;
  const int64_t chunk = std::min(kStepTokens, args.n_tokens);
  std::vector<int32_t> rows;
  int64_t row = 0;
  for (int64_t begin = 0; begin < args.n_tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, args.n_tokens);
    const Batch batch = make_batch(args, begin, end);
    const int64_t first = row;
    rows.clear();
    for (; row < args.n_rows && args.output_rows[row] < end; ++row) {
      rows.push_back(args.output_rows[row] - static_cast<int32_t>(begin));
    }
    Answer answer = args.answer;
    answer.values += first * width;
    if (k != 0) answer.ids += first * width;
    run_stages({.batch = &batch,
                .token_ids = args.token_ids + begin,
                .output_rows = rows.data(),
                .n_rows = row - first},
               answer, between_layers);
  }
}

// Only the first stage embeds, and only the last one has an output.
void Forward::run_stages(const Pass& pass, const Answer& answer,
                         const std::function<void()>& between_layers) {
  const int64_t n = pass.batch->n_tokens, floats = n * config_.dim;
  Pass part = pass;
  size_t first = 0;
  if (layer_stream_ && layer_stream_->takes(pass)) {
    layer_stream_->run(*stages_[0], pass, between_layers);
    part.token_ids = nullptr;
    first = 1;
  }
  for (size_t i = first; i < stages_.size(); ++i) {
    Stage& stage = *stages_[i];
    if (i > first) {
      Stage& before = *stages_[i - 1];
      float* x = before.backend().is_host() ? before.x(n) : x_.reserve(floats);
      before.backend().copy_out(before.x(n), floats, x);
      stage.backend().copy_in(x, floats, stage.x(n));
      part.token_ids = nullptr;
    }
    part.n_rows = i + 1 < stages_.size() ? 0 : pass.n_rows;
    stage.run(part, answer, between_layers);
  }
}

void Forward::embed(const int32_t* token_ids, int64_t n, float* x) {
  Stage& stage = *stages_.front();
  const Batch batch = plain_batch(n);
  const Pass pass{&batch, token_ids, nullptr, 0};
  run_op(stage.backend(), pass, 0, "embed", {Rows::kQ, x, 0}, {Rows::kX, x, n * config_.dim}, false,
         [&](const float*, float* y) {
           stage.backend().embed(stage.tok_embeddings(), pass, y);
           return true;
         });
}

void Forward::qkv(int64_t layer, const Batch& batch, const float* x, float* q) {
  Stage& stage = stage_of(layer);
  const int64_t floats = batch.n_tokens * config_.dim;
  run_op(stage.backend(), pass_of(batch), layer, "qkv", {Rows::kX, input(x), floats},
         {Rows::kQ, q, floats}, false, [&](const float* in, float* y) {
           return stage.backend().qkv(stage.layer(layer), config_.norm_eps, batch,
                                      stage.cache_of(layer), in, y);
         });
}

void Forward::attend(int64_t layer, const Batch& batch, const float* q, float* attended) {
  Stage& stage = stage_of(layer);
  const int64_t floats = batch.n_tokens * config_.dim;
  run_op(stage.backend(), pass_of(batch), layer, "attend", {Rows::kQ, input(q), floats},
         {Rows::kAttended, attended, floats}, false, [&](const float* in, float* y) {
           stage.backend().attend(stage.layer(layer), batch, stage.cache_of(layer), in, y);
           return true;
         });
}

void Forward::project(int64_t layer, int64_t n, const float* attended, float* x) {
  Stage& stage = stage_of(layer);
  const Batch batch = plain_batch(n);
  run_op(stage.backend(), pass_of(batch), layer, "project",
         {Rows::kAttended, input(attended), n * config_.dim}, {Rows::kX, x, n * config_.dim}, true,
         [&](const float* in, float* y) {
           return stage.backend().project(stage.layer(layer), n, in, y);
         });
}

void Forward::gate_up(int64_t layer, int64_t n, const float* x, float* hidden) {
  Stage& stage = stage_of(layer);
  const Batch batch = plain_batch(n);
  run_op(stage.backend(), pass_of(batch), layer, "gate_up", {Rows::kX, input(x), n * config_.dim},
         {Rows::kHidden, hidden, n * config_.hidden_dim}, false, [&](const float* in, float* y) {
           return stage.backend().gate_up(stage.layer(layer), config_.norm_eps, n, in, y);
         });
}

void Forward::down(int64_t layer, int64_t n, const float* hidden, float* x) {
  Stage& stage = stage_of(layer);
  const Batch batch = plain_batch(n);
  run_op(stage.backend(), pass_of(batch), layer, "down",
         {Rows::kHidden, input(hidden), n * config_.hidden_dim}, {Rows::kX, x, n * config_.dim},
         true, [&](const float* in, float* y) {
           return stage.backend().down(stage.layer(layer), n, in, y);
         });
}

void Forward::output(Output kind, int64_t n, const float* x, float* out) {
  Stage& stage = *stages_.back();
  const Batch batch = plain_batch(n);
  std::vector<int32_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), 0);
  const Pass pass{&batch, nullptr, rows.data(), n};
  run_op(stage.backend(), pass, config_.n_layers, "output", {Rows::kX, input(x), n * config_.dim},
         {Rows::kOutput, out, n * output_width(kind)}, false, [&](const float* in, float* y) {
           stage.run_output(pass, kind, in, y);
           return true;
         });
}

}  // namespace llama2q
