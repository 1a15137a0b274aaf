// Whole tiny models: the ragged step and the single ops with fuzzed tokens, positions and tables.
#include <algorithm>
#include <array>
#include <functional>
#include <optional>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/check.h"
#include "fuzz_matrix.h"
#include "input.h"
#include "model/forward.h"

namespace llama2q::fuzz {
namespace {

struct LayerWeights {
  Matrix wq, wk, wv, wo, w1_w3, w2;
};

// The arrays of a model; a Forward made from it borrows them.
struct Model {
  explicit Model(Input& input) {
    const int64_t head_dim = 2 * input.between(1, 9), kv_heads = input.between(1, 2);
    config = {.dim = 0,
              .hidden_dim = input.between(1, 40),
              .n_layers = input.between(1, 2),
              .n_heads = kv_heads * input.between(1, 3),
              .n_kv_heads = kv_heads,
              .vocab_size = input.between(1, 40),
              .norm_eps = input.byte() % 4 == 0 ? 0.0f : 1e-5f};
    config.dim = config.n_heads * head_dim;
    wild = input.byte() % 16 == 0;
    const int64_t group = input.pick<int64_t>({32, 64, 128});
    const auto matrix = [&](int64_t rows, int64_t cols) {
      return Matrix(input, rows, cols, group, wild);
    };
    const int64_t pair = 2 * kBandRows * ceil_div(config.hidden_dim, kBandRows);
    for (int64_t i = 0; i < config.n_layers; ++i) {
      layers.push_back({matrix(config.dim, config.dim), matrix(config.kv_dim(), config.dim),
                        matrix(config.kv_dim(), config.dim), matrix(config.dim, config.dim),
                        matrix(pair, config.dim), matrix(config.dim, config.hidden_dim)});
    }
    output.emplace(matrix(config.vocab_size, config.dim));
    table.emplace(input, config.vocab_size, config.dim, group, wild);
    norm = Exact<float>(config.dim);
    Noise noise(input.byte());
    for (float& value : norm) value = 1.0f + noise.real();
  }

  Weights weights() const {
    Weights views{.tok_embeddings = table->view,
                  .layers = {},
                  .norm = norm.data(),
                  .output = output->view,
                  .inv_freq = {}};
    for (const LayerWeights& layer : layers) {
      views.layers.push_back({.index = std::ssize(views.layers),
                              .attention_norm = norm.data(),
                              .wq = layer.wq.view,
                              .wk = layer.wk.view,
                              .wv = layer.wv.view,
                              .wo = layer.wo.view,
                              .ffn_norm = norm.data(),
                              .w1_w3 = layer.w1_w3.view,
                              .w2 = layer.w2.view});
    }
    for (int64_t i = 0; i < config.head_dim() / 2; ++i) {
      views.inv_freq.push_back(1.0 / static_cast<double>(i + 1));
    }
    return views;
  }

  Config config;
  bool wild;
  std::vector<LayerWeights> layers;
  std::optional<Matrix> output;
  std::optional<Embedding> table;
  Exact<float> norm;
};

// The arguments of a step: right at first, then with a few values overwritten.
struct Tokens {
  Tokens(Input& input, const Config& config, int64_t n_blocks) {
    n_sequences = input.between(0, 4);
    max_blocks = input.between(0, 4);
    std::vector<int32_t> sequence, position;
    for (int64_t s = 0; s < n_sequences; ++s) {
      const int64_t start = input.between(0, 64 * std::max<int64_t>(max_blocks, 1));
      const int64_t count = input.byte() == 0 ? input.between(0, 600) : input.between(0, 12);
      for (int64_t i = 0; i < count; ++i) {
        sequence.push_back(static_cast<int32_t>(s));
        position.push_back(static_cast<int32_t>(start + i));
      }
    }
    n = static_cast<int64_t>(sequence.size());
    ids = Exact<int32_t>(n);
    positions = Exact<int32_t>(n);
    sequences = Exact<int32_t>(n);
    tables = Exact<int32_t>(n_sequences * max_blocks);
    for (int64_t t = 0; t < n; ++t) {
      ids[t] = static_cast<int32_t>(input.between(0, config.vocab_size - 1));
      positions[t] = position[static_cast<size_t>(t)];
      sequences[t] = sequence[static_cast<size_t>(t)];
    }
    for (int64_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i % n_blocks);
    std::vector<int32_t> chosen;
    const int64_t stride = input.between(1, 8);
    for (int64_t t = input.between(0, 3); t < n; t += stride) {
      chosen.push_back(static_cast<int32_t>(t));
    }
    rows = Exact<int32_t>(static_cast<int64_t>(chosen.size()));
    for (int64_t i = 0; i < rows.size(); ++i) rows[i] = chosen[static_cast<size_t>(i)];
    const std::array arrays{&ids, &positions, &sequences, &tables, &rows};
    for (int64_t faults = input.byte() % 4; faults > 0; --faults) {
      Exact<int32_t>& array = *arrays[static_cast<size_t>(input.between(0, 4))];
      if (array.size() == 0) continue;
      int32_t& value = array[input.between(0, array.size() - 1)];
      value = input.byte() % 2 == 0 ? input.raw<int32_t>()
                                    : static_cast<int32_t>(input.between(-1, 64));
    }
  }

  StepArgs args(Output output, float* out) const {
    return {.token_ids = ids.data(),
            .positions = positions.data(),
            .sequence_of_token = sequences.data(),
            .n_tokens = n,
            .block_tables = tables.data(),
            .n_sequences = n_sequences,
            .max_blocks = max_blocks,
            .output_rows = rows.data(),
            .n_rows = rows.size(),
            .answer = {output, out, 0, nullptr}};
  }

  int64_t n, n_sequences, max_blocks;
  Exact<int32_t> ids, positions, sequences, tables, rows;
};

enum class Outcome { kDone, kRefused, kNonFinite };

Outcome outcome_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const InvalidArgument&) {
    return Outcome::kRefused;
  } catch (const NonFinite&) {
    return Outcome::kNonFinite;
  }
  return Outcome::kDone;
}

// The step op by op; must be what step() does.
void step_by_ops(Forward& forward, const Tokens& tokens, const StepArgs& args, Exact<float>& x) {
  const Config& config = forward.config();
  const int64_t n = tokens.n;
  forward.check_tokens(tokens.ids.data(), n);
  const Batch batch = forward.make_batch(args, 0, n);
  Exact<float> q(n * config.dim), attended(n * config.dim), hidden(n * config.hidden_dim);
  forward.embed(tokens.ids.data(), n, x.data());
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    forward.qkv(layer, batch, x.data(), q.data());
    forward.attend(layer, batch, q.data(), attended.data());
    forward.project(layer, n, attended.data(), x.data());
    forward.gate_up(layer, n, x.data(), hidden.data());
    forward.down(layer, n, hidden.data(), x.data());
  }
}

}  // namespace

void fuzz_step(Input& input) {
  const Model model(input);
  const KvType type = input.pick({KvType::kF32, KvType::kF16, KvType::kInt8});
  const int64_t n_blocks = input.between(1, 16);
  // Rarely several: on a busy machine each phase waits for the system to run them.
  const int threads = input.byte() % 16 == 0 ? 3 : 1;
  const Output kind = input.byte() % 2 == 0 ? Output::kLogits : Output::kHidden;
  std::vector<Tokens> steps;
  for (int64_t i = input.between(1, 3); i > 0; --i)
    steps.emplace_back(input, model.config, n_blocks);
  struct Run {
    std::vector<Outcome> outcomes;
    std::vector<Exact<float>> results;
  };
  const auto run = [&](const KernelTable& table, int n_threads) {
    const Config& c = model.config;
    Forward forward(c, model.weights(), std::make_unique<CpuBackend>(table, n_threads), type,
                    n_blocks);
    Run done;
    for (const Tokens& tokens : steps) {
      Exact<float> out(tokens.rows.size() * forward.output_width(kind));
      const StepArgs args = tokens.args(kind, out.data());
      done.outcomes.push_back(outcome_of([&] { forward.step(args, [] {}); }));
      done.results.push_back(std::move(out));
      if (tokens.n == 0 || tokens.n > 512 || done.outcomes.back() != Outcome::kDone) continue;
      Exact<float> x(tokens.n * c.dim);
      done.outcomes.push_back(outcome_of([&] { step_by_ops(forward, tokens, args, x); }));
      done.results.push_back(std::move(x));
    }
    return done;
  };
  const Run expected = run(*available_kernels().front(), 1);
  for (const KernelTable* table : available_kernels()) {
    const Run found = run(*table, threads);
    if (model.wild) continue;  // forbidden codes: defined behaviour, no common bits
    if (found.outcomes != expected.outcomes) fail("a step's outcome differs", table->name);
    for (size_t i = 0; i < found.results.size(); ++i) {
      if (found.outcomes[i] != Outcome::kDone) continue;
      expect_equal("a step's result differs", table->name, expected.results[i], found.results[i]);
    }
  }
}

}  // namespace llama2q::fuzz
