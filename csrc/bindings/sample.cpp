// From logits to tokens on NumPy arrays: edits, the draw, log-probabilities.
#include <pybind11/stl.h>

#include <optional>
#include <span>

#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "bindings/arrays.h"
#include "bindings/bind.h"
#include "model/logit_edits.h"
#include "model/logprobs.h"
#include "model/sampler.h"

namespace llama2q {
namespace {

using Isa = std::optional<std::string>;

py::array_t<int32_t> sample(const py::array& logits, const py::array& temperature,
                            const py::array& top_p, const py::array& top_k, const py::array& min_p,
                            const py::array& seed, const py::array& sequence_index,
                            const py::array& position, const Isa& isa) {
  check_array(logits, "logits", "float32", {kAny, kAny});
  const int64_t n = logits.shape(0), vocab_size = logits.shape(1);
  require(vocab_size > 0, "logits have no columns");
  check_array(temperature, "temperature", "float32", {n});
  check_array(top_p, "top_p", "float32", {n});
  check_array(top_k, "top_k", "int32", {n});
  check_array(min_p, "min_p", "float32", {n});
  check_array(seed, "seed", "uint64", {n});
  check_array(sequence_index, "sequence_index", "int32", {n});
  check_array(position, "position", "int32", {n});
  const KernelTable& table = kernels_named(isa.value_or(""));
  py::array_t<int32_t> ids(n);
  int32_t* out = ids.mutable_data();
  const py::gil_scoped_release release;
  static thread_local Sampler sampler;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = sampler.sample(table, data_of<float>(logits) + i * vocab_size, vocab_size,
                            {.temperature = data_of<float>(temperature)[i],
                             .top_p = data_of<float>(top_p)[i],
                             .top_k = data_of<int32_t>(top_k)[i],
                             .min_p = data_of<float>(min_p)[i],
                             .seed = data_of<uint64_t>(seed)[i],
                             .sequence_index = data_of<int32_t>(sequence_index)[i],
                             .position = data_of<int32_t>(position)[i]});
  }
  return ids;
}

template <class T>
std::span<const T> span_of(const py::array& array) {
  return {data_of<T>(array), static_cast<size_t>(array.size())};
}

// Rows are short work: the GIL is kept.
void edit(py::array& logits, const py::array& bias_ids, const py::array& biases,
          const py::array& seen_ids, const py::array& counts, double repetition, double frequency,
          double presence, const py::array& banned_ids) {
  check_array(logits, "logits", "float32", {kAny});
  require(logits.writeable(), "logits are read-only; they are edited in place");
  check_array(bias_ids, "bias_ids", "int32", {kAny});
  check_array(biases, "biases", "float32", {bias_ids.size()});
  check_array(seen_ids, "seen_ids", "int32", {kAny});
  check_array(counts, "counts", "int32", {seen_ids.size()});
  check_array(banned_ids, "banned_ids", "int32", {kAny});
  const FloatEnv environment;
  edit_logits(static_cast<float*>(logits.mutable_data()), logits.size(),
              {.bias_ids = span_of<int32_t>(bias_ids),
               .biases = span_of<float>(biases),
               .seen_ids = span_of<int32_t>(seen_ids),
               .counts = span_of<int32_t>(counts),
               .repetition = repetition,
               .frequency = frequency,
               .presence = presence,
               .banned_ids = span_of<int32_t>(banned_ids)});
}

py::tuple logprobs(const py::array& logits, const py::array& chosen, int64_t k, const Isa& isa) {
  check_array(logits, "logits", "float32", {kAny, kAny});
  const int64_t n = logits.shape(0), vocab_size = logits.shape(1);
  require(vocab_size > 0, "logits have no columns");
  check_array(chosen, "chosen", "int32", {n});
  require(k >= 0 && k <= vocab_size, "k is " + std::to_string(k) + "; expected 0 to " +
                                         std::to_string(vocab_size) + ", the size of a row");
  const KernelTable& table = kernels_named(isa.value_or(""));
  py::array_t<int32_t> ids({n, k}), ranks(n);
  auto values = new_floats({n, k}), chosen_values = new_floats({n});
  int32_t* ids_data = ids.mutable_data();
  int32_t* ranks_data = ranks.mutable_data();
  float* values_data = values.mutable_data();
  float* chosen_data = chosen_values.mutable_data();
  {
    const py::gil_scoped_release release;
    const FloatEnv environment;
    static thread_local Logprobs scratch;
    for (int64_t i = 0; i < n; ++i) {
      const auto [value, rank] =
          scratch.compute(table, data_of<float>(logits) + i * vocab_size, vocab_size,
                          data_of<int32_t>(chosen)[i], k, ids_data + i * k, values_data + i * k);
      chosen_data[i] = value;
      ranks_data[i] = rank;
    }
  }
  return py::make_tuple(ids, values, chosen_values, ranks);
}

}  // namespace

void bind_sample(py::module_& m) {
  using py::arg;
  const auto isa = [] { return arg("isa") = py::none(); };
  m.def("sample", sample, arg("logits").noconvert(), arg("temperature").noconvert(),
        arg("top_p").noconvert(), arg("top_k").noconvert(), arg("min_p").noconvert(),
        arg("seed").noconvert(), arg("sequence_index").noconvert(), arg("position").noconvert(),
        isa(), "One token id per row of logits float32 (n, vocab_size); int32 (n,).");
  m.def("edit_logits", edit, arg("logits").noconvert(), arg("bias_ids").noconvert(),
        arg("biases").noconvert(), arg("seen_ids").noconvert(), arg("counts").noconvert(),
        arg("repetition"), arg("frequency"), arg("presence"), arg("banned_ids").noconvert(),
        "Bias, penalties and bans on one row of logits float32 (vocab_size,), in place.");
  m.def("logprobs", logprobs, arg("logits").noconvert(), arg("chosen").noconvert(), arg("k"), isa(),
        "Of each row of logits float32 (n, vocab_size): ids int32 (n, k) and log-probabilities "
        "float32 (n, k) of the k likeliest tokens, log-probability float32 (n,) and rank int32 "
        "(n,) of the chosen one.");
}

}  // namespace llama2q
