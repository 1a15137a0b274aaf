#include <algorithm>
#include <cmath>

#include "cuda/attention.h"
#include "cuda/select.h"
#include "shapes.h"

namespace bench {
namespace {

using namespace llama2q;
using cuda::AttendArgs;
using cuda::check;
using cuda::Stream;

constexpr int64_t kContext = 4096;

const char* name_of(KvType type) { return type == KvType::kInt8 ? "int8" : "f16"; }

// Positions that a launch covers, as the backend has them: few sizes.
int64_t covered(int64_t positions) {
  int64_t context = 4 * kBlockSize;
  while (context < positions) context *= 2;
  return std::min(context, kContext);
}

// K and V of `n_sequences` of `length` positions each, in several copies, and a step of tokens.
struct Step {
  Step(const Machine&, const Work& work, KvType type, int64_t n_sequences, int64_t length,
       const std::vector<int32_t>& positions, const std::vector<int32_t>& sequence_of_token)
      : shape(*work.shape), n_tokens(static_cast<int64_t>(positions.size())) {
    const int64_t blocks = (length + kBlockSize - 1) / kBlockSize;
    const int64_t n_blocks = blocks * n_sequences;
    const int64_t rows = n_blocks * shape.n_kv_heads * kBlockSize;
    const int64_t bytes = rows * shape.head_dim * element_bytes(type);
    // What a launch reads of it.
    read_bytes = 2 * n_sequences * length * shape.n_kv_heads *
                 (shape.head_dim * element_bytes(type) + (type == KvType::kInt8 ? 2 : 0));
    const std::vector<unsigned char> values =
        type == KvType::kInt8 ? random_bytes() : random_halves();
    const std::vector<unsigned char> scales = repeated_word(0x20002000u);  // f16 2^-7
    const int n = rotations(work.settings, 2 * bytes, 64);
    for (int i = 0; i < n; ++i) {
      KvLayerView view{type,    n_blocks, shape.n_kv_heads, shape.head_dim,
                       nullptr, nullptr,  nullptr,          nullptr};
      for (const bool is_key : {true, false}) {
        memory.emplace_back(bytes);
        fill(memory.back().as(), bytes, values);
        (is_key ? view.k : view.v) = memory.back().as();
        if (type != KvType::kInt8) continue;
        memory.emplace_back(2 * rows);
        fill(memory.back().as(), 2 * rows, scales);
        (is_key ? view.k_scales : view.v_scales) = memory.back().as<uint16_t>();
      }
      caches.push_back(view);
    }
    std::vector<int32_t> tables;
    for (int64_t i = 0; i < n_blocks; ++i) tables.push_back(static_cast<int32_t>(i));
    arrays.push_back(upload(positions.data(), 4 * n_tokens));
    arrays.push_back(upload(sequence_of_token.data(), 4 * n_tokens));
    arrays.push_back(upload(tables.data(), 4 * n_blocks));
    const int64_t width = shape.n_heads * shape.head_dim;
    arrays.push_back(random_floats(n_tokens * width));
    arrays.push_back(zeros(4 * n_tokens * width));
    arrays.push_back(zeros(sizeof(int32_t)));
    tokens = {n_tokens, arrays[0].as<int32_t>(), arrays[1].as<int32_t>(), arrays[2].as<int32_t>(),
              blocks};
  }

  AttendArgs args(int i) const {
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
    return {.cache = caches[static_cast<size_t>(i) % caches.size()],
            .tokens = tokens,
            .n_heads = shape.n_heads,
            .q = arrays[3].as<float>(),
            .out = arrays[4].as<float>(),
            .scale = scale,
            .fault = arrays[5].as<int32_t>(),
            .fault_code = 1};
  }
  bool is_finite() const {
    int32_t found = 0;
    check(cudaMemcpy(&found, arrays[5].as(), sizeof found, cudaMemcpyDeviceToHost), "reading");
    return found == 0;
  }
  double activation_bytes() const {
    return 8.0 * static_cast<double>(n_tokens * shape.n_heads * shape.head_dim);
  }

  const Shape& shape;
  int64_t n_tokens, read_bytes = 0;
  std::vector<Memory> memory, arrays;
  std::vector<KvLayerView> caches;
  cuda::TokenView tokens{};
};

void print(const Step& step, const char* op, KvType type, double ops, const char* limit,
           const Times& times, int64_t depth, int64_t n_sequences) {
  Row row;
  row.text("op", op).text("shape", step.shape.name).text("kv", name_of(type));
  row.number("tokens", static_cast<double>(step.n_tokens));
  row.number("depth", static_cast<double>(depth));
  row.number("sequences", static_cast<double>(n_sequences));
  row.number("bytes", static_cast<double>(step.read_bytes) + step.activation_bytes());
  row.number("ops", ops).text("limit", limit).times(times);
  row.number("buffers", static_cast<double>(step.caches.size()));
  if (!step.is_finite()) row.text("error", "a value was not finite");
  row.print();
}

// n_tokens at once, of as many sequences or of one.
void time_decode(const Machine& machine, const Work& work, KvType type, int64_t depth,
                 int64_t n_tokens, bool is_one_sequence) {
  std::vector<int32_t> positions, sequences;
  for (int64_t i = 0; i < n_tokens; ++i) {
    positions.push_back(static_cast<int32_t>(is_one_sequence ? depth + i : depth));
    sequences.push_back(static_cast<int32_t>(is_one_sequence ? 0 : i));
  }
  const int64_t length = depth + (is_one_sequence ? n_tokens : 1);
  const int64_t n_sequences = is_one_sequence ? 1 : n_tokens;
  const Step step(machine, work, type, n_sequences, length, positions, sequences);
  const Shape& s = *work.shape;
  const Memory states(4 * cuda::decode_states(n_tokens, s.n_heads, s.head_dim, kContext));
  const Memory tickets = zeros(4 * cuda::decode_tickets(n_tokens, s.n_heads));
  const cuda::DecodeScratch scratch{states.as<float>(), tickets.as<uint32_t>()};
  const auto queue = [&](const Stream& stream, int i) {
    cuda::attend_decode(stream, step.args(i), scratch, covered(length),
                        is_one_sequence ? n_tokens : 1);
  };
  const auto n_caches = static_cast<int>(step.caches.size());
  const double guess = static_cast<double>(step.read_bytes) / 3e6 + 4;
  const Times times = time_chain(work.settings, machine.stream, n_caches, guess, queue);
  const double seen = static_cast<double>(n_tokens * length);
  print(step, "attend, decode", type, 4 * seen * static_cast<double>(s.n_heads * s.head_dim),
        "read", times, depth, n_sequences);
}

void time_prefill(const Machine& machine, const Work& work, KvType type, int64_t n_tokens) {
  std::vector<int32_t> positions, sequences(static_cast<size_t>(n_tokens), 0);
  double seen = 0;
  for (int64_t i = 0; i < n_tokens; ++i) {
    positions.push_back(static_cast<int32_t>(i));
    seen += static_cast<double>(i + 1);
  }
  const Shape& s = *work.shape;
  if (!cuda::has_prefill(type, s.head_dim)) return;
  const Step step(machine, work, type, 1, n_tokens, positions, sequences);
  const int64_t group = s.n_heads / s.n_kv_heads;
  std::vector<cuda::PrefillTile> tiles(
      static_cast<size_t>(cuda::most_prefill_tiles(n_tokens, group)));
  const int64_t n_tiles =
      cuda::cut_prefill_tiles(positions.data(), sequences.data(), n_tokens, group, tiles.data());
  const Memory there =
      upload(tiles.data(), n_tiles * static_cast<int64_t>(sizeof(cuda::PrefillTile)));
  const auto queue = [&](const Stream& stream, int i) {
    cuda::attend_prefill(stream, step.args(i), there.as<cuda::PrefillTile>(), n_tiles);
  };
  const double ops = 4 * seen * static_cast<double>(s.n_heads * s.head_dim);
  const Times times = time_chain(work.settings, machine.stream, 2, ops / 2e8 + 4, queue);
  print(step, "attend, prefill", type, ops, "f16 mma", times, 0, 1);
}

void time_append(const Machine& machine, const Work& work, KvType type, int64_t n_tokens) {
  std::vector<int32_t> positions, sequences(static_cast<size_t>(n_tokens), 0);
  for (int64_t i = 0; i < n_tokens; ++i) positions.push_back(static_cast<int32_t>(i));
  const Step step(machine, work, type, 1, n_tokens, positions, sequences);
  const Shape& s = *work.shape;
  const Memory q = random_floats(n_tokens * s.n_heads * s.head_dim);
  const Memory k = random_floats(n_tokens * s.kv_dim()), v = random_floats(n_tokens * s.kv_dim());
  const Memory angles = zeros(4 * n_tokens * s.head_dim / 2);
  const auto queue = [&](const Stream& stream, int i) {
    const AttendArgs args = step.args(i);
    cuda::rope_append(stream, {.cache = args.cache,
                               .tokens = args.tokens,
                               .n_heads = s.n_heads,
                               .q = q.as<float>(),
                               .k = k.as<float>(),
                               .v = v.as<float>(),
                               .cos = angles.as<float>(),
                               .sin = angles.as<float>(),
                               .fault = args.fault,
                               .fault_code = 1});
  };
  const Times times = time_chain(work.settings, machine.stream, 2, 10, queue);
  print(step, "rope, append", type, 0, "read", times, 0, 1);
}

void time_select(const Machine& machine, const Work& work, int64_t k) {
  const int64_t vocab_size = work.shape->vocab_size;
  const Memory logits = random_floats(vocab_size), values = zeros(4 * k), ids = zeros(4 * k);
  const Memory scratch(8 * cuda::select_keys(1, vocab_size, k));
  const Memory tickets = zeros(4), fault = zeros(4);
  const auto queue = [&](const Stream& stream, int) {
    cuda::select(stream, {.logits = logits.as<float>(),
                          .n_rows = 1,
                          .vocab_size = vocab_size,
                          .k = k,
                          .values = values.as<float>(),
                          .ids = ids.as<int32_t>(),
                          .scratch = scratch.as<uint64_t>(),
                          .tickets = tickets.as<uint32_t>(),
                          .fault = fault.as<int32_t>(),
                          .fault_code = 1});
  };
  const Times times = time_chain(work.settings, machine.stream, 2, 10, queue);
  Row()
      .text("op", "select " + std::to_string(k))
      .text("shape", work.shape->name)
      .number("tokens", 1)
      .number("bytes", 4.0 * static_cast<double>(vocab_size))
      .number("ops", 0)
      .text("limit", "read")
      .times(times)
      .print();
}

}  // namespace

bool time_attention(const Machine& machine, const Work& work) {
  const int64_t several = std::min<int64_t>(work.few.empty() ? 1 : work.few.back(), 8);
  bool is_usable = true;
  const auto time = [&](const char* name, const auto& body) {
    if (is_usable && work.wants(name)) is_usable = guarded(name, body);
  };
  for (const KvType type : {KvType::kF16, KvType::kInt8}) {
    for (const int64_t depth : work.depths) {
      time("attend, decode", [&] { time_decode(machine, work, type, depth, 1, true); });
    }
    if (several > 1 && work.depths.size() > 1) {
      for (const bool is_one : {true, false}) {
        time("attend, decode",
             [&] { time_decode(machine, work, type, work.depths[1], several, is_one); });
      }
    }
    for (const int64_t n : work.prompts) {
      time("attend, prefill", [&] { time_prefill(machine, work, type, n); });
    }
  }
  return is_usable;
}

bool time_others(const Machine& machine, const Work& work) {
  bool is_usable = true;
  for (const int64_t n : work.prompts) {
    if (is_usable && work.wants("rope, append")) {
      is_usable = guarded("rope, append", [&] { time_append(machine, work, KvType::kF16, n); });
    }
  }
  for (const int64_t k : {int64_t{1}, int64_t{40}}) {
    if (is_usable && work.wants("select")) {
      is_usable = guarded("select", [&] { time_select(machine, work, k); });
    }
  }
  return is_usable;
}

}  // namespace bench
