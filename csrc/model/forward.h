// The forward pass: the ragged step, and each op of a layer for those who run layers one by one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu_backend.h"
#include "base/buffer.h"
#include "model/layer_stream.h"
#include "model/stage.h"

namespace llama2q {

// Tokens of a pass over the layers, at most: bounds the work space.
inline constexpr int64_t kStepTokens = 512;

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
  Answer answer;
};

// So many layers, on this backend.
struct Share {
  std::unique_ptr<Backend> backend;
  int64_t n_layers;
};

class Forward {
 public:
  // The layers in their order, dealt out; where the host computes, it has the first ones.
  Forward(const Config& config, Weights weights, std::vector<Share> shares, KvType kv_type,
          int64_t n_blocks);
  // All of them on one backend.
  Forward(const Config& config, Weights weights, std::unique_ptr<Backend> backend, KvType kv_type,
          int64_t n_blocks);

  const Config& config() const { return config_; }
  KvType kv_type() const { return kv_type_; }
  int64_t n_blocks() const { return n_blocks_; }
  // K and V of source[i] -> destination[i] in every layer. Throws InvalidArgument for an id out of
  // range and for a destination that is also a source or stands twice.
  void copy_blocks(const int32_t* source, const int32_t* destination, int64_t n);
  // K and V of blocks, in all layers: to the host and back, block_bytes() each. Throws
  // InvalidArgument for an id out of range, and for one that stands twice where it is written.
  int64_t block_bytes() const;
  void read_blocks(const int32_t* blocks, int64_t n, char* host) const;
  void write_blocks(const int32_t* blocks, int64_t n, const char* host);
  int64_t output_width(Output output) const {
    return output == Output::kLogits ? config_.vocab_size : config_.dim;
  }

  // From now on, steps take the weights of the host's layers from this reader.
  void set_read_ahead(std::unique_ptr<ReadAhead> reader);
  // From now on, the first device computes the host's layers, too, where a pass has that many
  // tokens. Throws InvalidArgument if there is no host with layers, or no device.
  void set_layer_stream(int64_t from_tokens);
  // What backends had to do without, for the user.
  std::vector<std::string> notes() const;
  // Layers that the host computes.
  int64_t n_host_layers() const;

  // Bytes of the host's work space held now, and what steps make of it that have n_tokens tokens
  // and ask for n_rows rows at most, where the host has all layers; group_size is that of the
  // quantized matrices, 0 if all are dense.
  int64_t work_bytes() const;
  static int64_t work_bytes(const KernelTable& kernels, const Config& config, int64_t group_size,
                            int n_threads, int64_t n_tokens, int64_t n_rows);

  // Runs the tokens in chunks of at most 512. between_layers is called before every layer and may
  // throw to stop the step. Throws InvalidArgument before any work if the arguments are not sound,
  // NonFinite if a value is NaN or infinite.
  void step(const StepArgs& args, const std::function<void()>& between_layers);

  // The ops, on the host's memory; x, q, attended: f32 [n, dim], hidden: f32 [n, hidden_dim].
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
  Stage& stage_of(int64_t layer);
  void check_block(int32_t block) const;
  void check_step(const StepArgs& args) const;
  void run_stages(const Pass& pass, const Answer& answer,
                  const std::function<void()>& between_layers);

  Config config_;
  Weights weights_;
  KvType kv_type_;
  int64_t n_blocks_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::unique_ptr<LayerStream> layer_stream_;
  Buffer<float> x_;  // f32 [n_tokens, dim], on the way from one stage to the next
};

}  // namespace llama2q
