// From logits to a token: edits, log-probabilities, the draw.
#include <algorithm>
#include <span>

#include "backend/cpu_features.h"
#include "base/check.h"
#include "input.h"
#include "model/logit_edits.h"
#include "model/logprobs.h"
#include "model/sampler.h"

namespace llama2q::fuzz {
namespace {

SampleArgs sample_args(Input& input) {
  const auto share = [&] {
    return input.byte() < 200 ? static_cast<float>(input.byte()) / 255.0f : input.real();
  };
  return {
      .temperature = input.byte() < 200 ? static_cast<float>(input.byte()) / 64.0f : input.real(),
      .top_p = share(),
      .top_k =
          input.byte() < 200 ? static_cast<int32_t>(input.between(0, 80)) : input.raw<int32_t>(),
      .min_p = share(),
      .seed = input.raw<uint64_t>(),
      .sequence_index = input.raw<int32_t>(),
      .position = input.raw<int32_t>()};
}

// The arrays of LogitEdits, mostly ids of the vocabulary; an input that has ended edits nothing.
struct Edits {
  Edits(Input& input, int64_t n) {
    for (Exact<int32_t>* ids : {&bias_ids, &seen_ids, &banned_ids}) {
      *ids = Exact<int32_t>(input.between(0, 9));
      for (int32_t& id : *ids) {
        id = static_cast<int32_t>(input.byte() < 250 ? input.between(0, n - 1)
                                                     : input.between(-1, n));
      }
    }
    biases = Exact<float>(bias_ids.size());
    for (float& bias : biases) bias = input.real();
    counts = Exact<int32_t>(seen_ids.size());
    for (int32_t& count : counts) {
      count = input.byte() < 250 ? input.byte() : input.raw<int32_t>();
    }
    repetition = 1.0 + factor(input);
    frequency = factor(input);
    presence = factor(input);
  }

  static double factor(Input& input) {
    const uint8_t kind = input.byte();
    if (kind < 100) return static_cast<double>(kind) / 50.0;
    return kind < 220 ? static_cast<double>(input.real()) : input.raw<double>();
  }

  LogitEdits view() const {
    const auto span = [](const auto& array) {
      return std::span(array.data(), static_cast<size_t>(array.size()));
    };
    return {.bias_ids = span(bias_ids),
            .biases = span(biases),
            .seen_ids = span(seen_ids),
            .counts = span(counts),
            .repetition = repetition,
            .frequency = frequency,
            .presence = presence,
            .banned_ids = span(banned_ids)};
  }

  Exact<int32_t> bias_ids, seen_ids, banned_ids, counts;
  Exact<float> biases;
  double repetition, frequency, presence;
};

// Refused edits leave the row as it was; others touch none but the tokens that they name.
void edit(Exact<float>& logits, const Edits& edits) {
  Exact<float> before(logits.size());
  std::copy(logits.begin(), logits.end(), before.begin());
  try {
    edit_logits(logits.data(), logits.size(), edits.view());
  } catch (const InvalidArgument&) {
    expect_equal("refused edits changed the logits", "", before, logits);
    throw;
  }
  const LogitEdits view = edits.view();
  for (const int32_t id : view.banned_ids) {
    if (logits[id] != -__builtin_inff()) fail("a banned token kept its logit", "");
  }
  for (const auto ids : {view.bias_ids, view.seen_ids, view.banned_ids}) {
    for (const int32_t id : ids) before[id] = logits[id];
  }
  expect_equal("edits changed a token that they do not name", "", before, logits);
}

struct Likely {
  Exact<int32_t> ids, rank;
  Exact<float> values;  // of ids, then of the chosen token
};

Likely likely_tokens(const KernelTable& table, const Exact<float>& logits, int32_t chosen,
                     int64_t k) {
  const int64_t n = logits.size();
  Likely found{Exact<int32_t>(k), Exact<int32_t>(1), Exact<float>(k + 1)};
  const auto [value, rank] =
      Logprobs().compute(table, logits.data(), n, chosen, k, found.ids.data(), found.values.data());
  found.rank[0] = rank;
  found.values[k] = value;
  if (rank < 1 || rank > n) fail("a rank outside the vocabulary", table.name);
  if (rank <= k && found.ids[rank - 1] != chosen) {
    fail("the chosen token is not where its rank says", table.name);
  }
  for (int64_t i = 0; i < k; ++i) {
    if (found.ids[i] < 0 || found.ids[i] >= n) {
      fail("a likely token outside the vocabulary", table.name);
    }
    const float before = i > 0 ? found.values[i - 1] : 0.0f;
    if (!(found.values[i] <= before)) fail("the likely tokens do not descend from 0", table.name);
  }
  return found;
}

void check_logprobs(const Exact<float>& logits, int32_t chosen, int64_t k) {
  const Likely expected = likely_tokens(*available_kernels().front(), logits, chosen, k);
  for (const KernelTable* table : available_kernels()) {
    const Likely found = likely_tokens(*table, logits, chosen, k);
    expect_equal("likely tokens differ", table->name, expected.ids, found.ids);
    expect_equal("log-probabilities differ", table->name, expected.values, found.values);
    expect_equal("ranks differ", table->name, expected.rank, found.rank);
  }
}

void check_draw(const Exact<float>& logits, const SampleArgs& args) {
  const int64_t n = logits.size();
  int32_t expected = -1;
  for (const KernelTable* table : available_kernels()) {
    Sampler sampler;
    const int32_t id = sampler.sample(*table, logits.data(), n, args);
    if (id < 0 || id >= n) fail("the sampler drew a token outside the vocabulary", table->name);
    if (!(logits.data()[id] > -__builtin_inff())) {
      fail("the sampler drew a masked token", table->name);
    }
    if (expected >= 0 && id != expected) fail("the sampler's token differs", table->name);
    expected = id;
    if (sampler.sample(*table, logits.data(), n, args) != id) {
      fail("a second draw differs", table->name);
    }
  }
}

}  // namespace

void fuzz_sampling(Input& input) {
  const int64_t n = input.between(1, 70);
  Exact<float> logits(n);
  const uint8_t kind = input.byte();
  Noise noise(kind);
  for (float& logit : logits) logit = kind % 2 == 0 ? input.real() : noise.real() * 8.0f;
  if (input.byte() % 4 == 0) logits[input.between(0, n - 1)] = -__builtin_inff();
  const SampleArgs args = sample_args(input);
  edit(logits, Edits(input, n));
  const auto chosen = static_cast<int32_t>(input.between(0, n - 1));
  check_logprobs(logits, chosen, input.between(0, n));
  check_draw(logits, args);
}

}  // namespace llama2q::fuzz
