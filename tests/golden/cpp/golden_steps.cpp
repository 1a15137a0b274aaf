// Whole models: some steps one after the other, through model/forward.h on the CPU backend.
#include <algorithm>

#include "backend/cpu_backend.h"
#include "golden.h"
#include "model/forward.h"

namespace llama2q::golden {

MatrixView matrix_of(const Case& one, const std::string& name) {
  const auto shape = one.array<int64_t>(name + ".shape");
  if (shape.size() != 4) throw FileError(one.name + ": " + name + " has no shape");
  MatrixView view{.kind = static_cast<MatrixKind>(shape[0]),
                  .rows = shape[1],
                  .cols = shape[2],
                  .n_bands = (shape[1] + kBandRows - 1) / kBandRows,
                  .group_size = shape[3],
                  .n_groups = shape[3] == 0 ? 0 : (shape[2] + shape[3] - 1) / shape[3],
                  .codes = one.array<char>(name + ".codes").data(),
                  .scales = nullptr,
                  .grid = {}};
  if (shape[3] != 0) view.scales = one.array<uint16_t>(name + ".scales").data();
  if (view.kind == MatrixKind::kInt4) {
    std::copy_n(one.array<int8_t>(name + ".grid").begin(), 16, view.grid);
  }
  return view;
}

EmbeddingView embedding_of(const Case& one, const std::string& name) {
  const MatrixView matrix = matrix_of(one, name);
  return {.kind = matrix.kind,
          .rows = matrix.rows,
          .cols = matrix.cols,
          .group_size = matrix.group_size,
          .n_groups = matrix.n_groups,
          .codes = matrix.codes,
          .scales = matrix.scales};
}

namespace {

Config config_of(const Case& one) {
  return {.dim = one.integer("dim"),
          .hidden_dim = one.integer("hidden_dim"),
          .n_layers = one.integer("n_layers"),
          .n_heads = one.integer("n_heads"),
          .n_kv_heads = one.integer("n_kv_heads"),
          .vocab_size = one.integer("vocab_size"),
          .norm_eps = one.real("norm_eps")};
}

Weights weights_of(const Case& one, const Config& config) {
  const auto inv_freq = one.array<double>("inv_freq");
  Weights weights{.tok_embeddings = embedding_of(one, "tok_embeddings"),
                  .layers = {},
                  .norm = one.array<float>("norm").data(),
                  .output = matrix_of(one, "output"),
                  .inv_freq = {inv_freq.begin(), inv_freq.end()}};
  for (int64_t i = 0; i < config.n_layers; ++i) {
    const std::string prefix = std::to_string(i) + ".";
    const auto norm = [&](const char* name) { return one.array<float>(prefix + name).data(); };
    const auto matrix = [&](const char* name) { return matrix_of(one, prefix + name); };
    weights.layers.push_back({.index = i,
                              .attention_norm = norm("attention_norm"),
                              .wq = matrix("wq"),
                              .wk = matrix("wk"),
                              .wv = matrix("wv"),
                              .wo = matrix("wo"),
                              .ffn_norm = norm("ffn_norm"),
                              .w1_w3 = matrix("w1_w3"),
                              .w2 = matrix("w2")});
  }
  return weights;
}

}  // namespace

void run_steps(const Case& one, const KernelTable& table, int n_threads) {
  const Config config = config_of(one);
  const auto type = static_cast<KvType>(one.integer("kv_type"));
  Forward forward(config, weights_of(one, config), std::make_unique<CpuBackend>(table, n_threads),
                  type, one.integer("n_blocks"));
  for (int64_t i = 0; i < one.integer("n_steps"); ++i) {
    const std::string step = "step " + std::to_string(i) + " ";
    const auto ints = [&](const char* name) { return one.array<int32_t>(step + name); };
    const auto ids = ints("ids"), tables = ints("tables"), rows = ints("rows");
    const int64_t n_sequences = one.integer(step + "n_sequences");
    Array<float> logits(static_cast<int64_t>(rows.size()) * config.vocab_size);
    const StepArgs args{.token_ids = ids.data(),
                        .positions = ints("positions").data(),
                        .sequence_of_token = ints("sequences").data(),
                        .n_tokens = static_cast<int64_t>(ids.size()),
                        .block_tables = tables.data(),
                        .n_sequences = n_sequences,
                        .max_blocks = static_cast<int64_t>(tables.size()) / n_sequences,
                        .output_rows = rows.data(),
                        .n_rows = static_cast<int64_t>(rows.size()),
                        .answer = {Output::kLogits, logits.data(), 0, nullptr}};
    forward.step(args, [] {});
    expect(step + "logits", one.array<float>(step + "logits"), logits.span());
  }
}

}  // namespace llama2q::golden
