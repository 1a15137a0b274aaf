// From logits to tokens.
#include "base/float_env.h"
#include "golden.h"
#include "model/logprobs.h"
#include "model/sampler.h"

namespace llama2q::golden {
namespace {

void sample(const Case& one, const KernelTable& table) {
  const auto logits = one.array<float>("logits"), temperature = one.array<float>("temperature");
  const auto n = static_cast<int64_t>(temperature.size());
  const int64_t vocab_size = static_cast<int64_t>(logits.size()) / n;
  Array<int32_t> ids(n);
  Sampler sampler;
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<size_t>(i);
    ids.data()[i] = sampler.sample(table, logits.data() + i * vocab_size, vocab_size,
                                   {.temperature = temperature[at],
                                    .top_p = one.array<float>("top_p")[at],
                                    .top_k = one.array<int32_t>("top_k")[at],
                                    .min_p = one.array<float>("min_p")[at],
                                    .seed = one.array<uint64_t>("seed")[at],
                                    .sequence_index = one.array<int32_t>("sequence_index")[at],
                                    .position = one.array<int32_t>("position")[at]});
  }
  expect("ids", one.array<int32_t>("ids"), ids.span());
}

void logprobs(const Case& one, const KernelTable& table) {
  const FloatEnv environment;
  const auto logits = one.array<float>("logits");
  const auto chosen = one.array<int32_t>("chosen");
  const auto n = static_cast<int64_t>(chosen.size());
  const int64_t vocab_size = static_cast<int64_t>(logits.size()) / n, k = one.integer("k");
  Array<int32_t> ids(n * k), ranks(n);
  Array<float> values(n * k), chosen_values(n);
  Logprobs scratch;
  for (int64_t i = 0; i < n; ++i) {
    const auto [value, rank] = scratch.compute(table, logits.data() + i * vocab_size, vocab_size,
                                               chosen[static_cast<size_t>(i)], k,
                                               ids.data() + i * k, values.data() + i * k);
    chosen_values.data()[i] = value;
    ranks.data()[i] = rank;
  }
  expect("ids", one.array<int32_t>("ids"), ids.span());
  expect("values", one.array<float>("values"), values.span());
  expect("chosen's value", one.array<float>("chosen_values"), chosen_values.span());
  expect("chosen's rank", one.array<int32_t>("ranks"), ranks.span());
}

}  // namespace

void run_sampling(const Case& one, const KernelTable& table) {
  if (one.op == "sample") return sample(one, table);
  logprobs(one, table);
}

}  // namespace llama2q::golden
