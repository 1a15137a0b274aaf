// Single kernels and ops, through the backend where it prepares their arguments.
#include <algorithm>

#include "backend/cpu_backend.h"
#include "base/float_env.h"
#include "golden.h"
#include "model/kv_cache.h"
#include "quant/quantize.h"

namespace llama2q::golden {
namespace {

using Floats = Array<float>;

Floats copy_of(std::span<const float> values) {
  Floats copy(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), copy.data());
  return copy;
}

void expect_finite(const Case& one, bool found) {
  const bool expected = !one.has("refused");
  if (found != expected) differs("finite", 0, expected ? 1 : 0, found ? 1 : 0);
}

void quantize_rows(const Case& one, const KernelTable& table) {
  const auto x = one.array<float>("x");
  const int64_t cols = one.integer("cols"), group_size = one.integer("group_size");
  const int64_t n = static_cast<int64_t>(x.size()) / cols;
  const int64_t n_groups = (cols + group_size - 1) / group_size;
  Array<int8_t> codes(n * n_groups * group_size);
  Floats scales(n * n_groups);
  Array<int32_t> corrections(n * n_groups);
  bool finite = true;
  for (int64_t t = 0; t < n; ++t) {
    const TileRow row{.codes = codes.data() + t * n_groups * group_size,
                      .wide_codes = nullptr,
                      .scales = scales.data() + t * n_groups,
                      .corrections = corrections.data() + t * n_groups,
                      .width = 1,
                      .token = 0};
    finite = table.quantize_row(x.data() + t * cols, cols, group_size, row) && finite;
  }
  expect_finite(one, finite);
  if (!finite) return;
  expect("codes", one.array<int8_t>("codes"), codes.span());
  expect("scales", one.array<float>("scales"), scales.span());
  expect("corrections", one.array<int32_t>("corrections"), corrections.span());
}

void rms_norm(const Case& one, const KernelTable& table) {
  const auto x = one.array<float>("x"), weight = one.array<float>("weight");
  Floats y(static_cast<int64_t>(x.size()));
  const auto dim = static_cast<int64_t>(weight.size());
  for (int64_t t = 0; t < y.size(); t += dim) {
    table.rms_norm(x.data() + t, weight.data(), dim, one.real("eps"), y.data() + t);
  }
  expect("y", one.array<float>("y"), y.span());
}

void rope(const Case& one, const KernelTable& table) {
  const auto positions = one.array<int32_t>("positions");
  const auto inv_freq = one.array<double>("inv_freq");
  const auto n = static_cast<int64_t>(positions.size());
  const auto half = static_cast<int64_t>(inv_freq.size());
  Batch batch{.n_tokens = n,
              .positions = positions.data(),
              .sequence_of_token = nullptr,
              .block_tables = nullptr,
              .n_sequences = 0,
              .max_blocks = 0,
              .cos = {},
              .sin = {}};
  fill_rope(batch, {inv_freq.begin(), inv_freq.end()}, 1.0);
  Floats y = copy_of(one.array<float>("x"));
  const int64_t width = y.size() / n;
  for (int64_t t = 0; t < n; ++t) {
    table.rope(y.data() + t * width, batch.cos.data() + t * half, batch.sin.data() + t * half,
               width / (2 * half), 2 * half);
  }
  expect("y", one.array<float>("y"), y.span());
}

void lanes(const Case& one, const KernelTable& table) {
  const auto x = one.array<float>("x");
  Floats y(static_cast<int64_t>(x.size()));
  if (one.op == "exp") {
    table.exp(x.data(), y.size(), y.data());
  } else {
    table.swiglu(x.data(), one.array<float>("up").data(), y.size(), y.data());
  }
  expect("y", one.array<float>("y"), y.span());
}

void matmul(const Case& one, const KernelTable& table, int n_threads) {
  const MatrixView matrix = matrix_of(one, "matrix");
  const auto x = one.array<float>("x");
  const int64_t n = static_cast<int64_t>(x.size()) / matrix.cols;
  CpuBackend backend(table, n_threads);
  Floats y = one.has("residual") ? copy_of(one.array<float>("residual")) : Floats(n * matrix.rows);
  const bool finite = backend.matmul(matrix, n, x.data(), y.data(), one.has("residual"));
  expect_finite(one, finite);
  if (finite) expect("y", one.array<float>("y"), y.span());
}

void gate_up(const Case& one, const KernelTable& table, int n_threads) {
  LayerView layer{};
  layer.ffn_norm = one.array<float>("norm").data();
  layer.w1_w3 = matrix_of(one, "matrix");
  layer.w2.cols = one.integer("hidden_dim");
  const auto x = one.array<float>("x");
  const int64_t n = static_cast<int64_t>(x.size()) / layer.w1_w3.cols;
  CpuBackend backend(table, n_threads);
  Floats y(n * layer.w2.cols);
  expect_finite(one, backend.gate_up(layer, one.real("eps"), n, x.data(), y.data()));
  expect("y", one.array<float>("y"), y.span());
}

void embed(const Case& one, const KernelTable& table) {
  const EmbeddingView view = embedding_of(one, "matrix");
  const auto ids = one.array<int32_t>("ids");
  Floats y(static_cast<int64_t>(ids.size()) * view.cols);
  for (size_t i = 0; i < ids.size(); ++i) {
    table.embed(view, ids[i], y.data() + static_cast<int64_t>(i) * view.cols);
  }
  expect("y", one.array<float>("y"), y.span());
}

// Appends all keys and values to a cache, then attends.
void attention(const Case& one, const KernelTable& table, int n_threads) {
  const auto q = one.array<float>("q"), k = one.array<float>("k");
  const auto positions = one.array<int32_t>("positions");
  const int64_t n_heads = one.integer("n_heads"), n_kv_heads = one.integer("n_kv_heads");
  const int64_t head_dim = one.integer("head_dim");
  const int64_t n_keys = static_cast<int64_t>(k.size()) / (n_kv_heads * head_dim);
  const int64_t n_blocks = (n_keys + kBlockSize - 1) / kBlockSize;
  CpuBackend backend(table, n_threads);
  KvCache cache(backend, static_cast<KvType>(one.integer("kv_type")), 1, n_blocks, n_kv_heads,
                head_dim);
  std::vector<int32_t> blocks(static_cast<size_t>(n_blocks));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  std::vector<int32_t> key_positions(static_cast<size_t>(n_keys));
  for (size_t i = 0; i < key_positions.size(); ++i) key_positions[i] = static_cast<int32_t>(i);
  const std::vector<int32_t> sequence(std::max(positions.size(), key_positions.size()), 0);
  const AppendArgs append{.cache = cache.layer(0),
                          .k = k.data(),
                          .v = one.array<float>("v").data(),
                          .positions = key_positions.data(),
                          .sequence_of_token = sequence.data(),
                          .block_tables = blocks.data(),
                          .max_blocks = n_blocks};
  bool finite = true;
  for (int64_t t = 0; t < n_keys; ++t) finite = table.append(append, t) && finite;
  expect_finite(one, finite);
  if (!finite) return;
  const Batch batch{.n_tokens = static_cast<int64_t>(positions.size()),
                    .positions = positions.data(),
                    .sequence_of_token = sequence.data(),
                    .block_tables = blocks.data(),
                    .n_sequences = 1,
                    .max_blocks = n_blocks,
                    .cos = {},
                    .sin = {}};
  Floats y(static_cast<int64_t>(q.size()));
  backend.attend(batch, cache.layer(0), n_heads, q.data(), y.data());
  expect("y", one.array<float>("y"), y.span());
}

// The quantizers are no part of the instruction sets' tables, but of the same contract.
void quantize_weights(const Case& one) {
  const int64_t rows = one.integer("rows"), cols = one.integer("cols");
  const int64_t group_size = one.integer("group_size");
  const WeightSource source{SourceType::kF32, one.array<float>("x").data(), rows, cols};
  const int64_t n_bands = (rows + kBandRows - 1) / kBandRows;
  const auto expected = one.array<uint8_t>("codes");
  Array<uint8_t> codes(static_cast<int64_t>(expected.size()));
  Array<uint16_t> scales(static_cast<int64_t>(one.array<uint16_t>("scales").size()));
  const bool int4 = one.has("grid");
  const QuantizeFault fault =
      int4 ? quantize_int4(source, group_size, one.array<int8_t>("grid").data(), 0, n_bands,
                           codes.data(), scales.data())
           : quantize_int8(source, group_size, 0, n_bands, reinterpret_cast<int8_t*>(codes.data()),
                           scales.data());
  expect_finite(one, fault.none());
  expect("codes", expected, codes.span());
  expect("scales", one.array<uint16_t>("scales"), scales.span());
}

}  // namespace

void run_kernel(const Case& one, const KernelTable& table, int n_threads) {
  const FloatEnv environment;
  if (one.op == "quantize_rows") return quantize_rows(one, table);
  if (one.op == "rms_norm") return rms_norm(one, table);
  if (one.op == "rope") return rope(one, table);
  if (one.op == "exp" || one.op == "swiglu") return lanes(one, table);
  if (one.op == "matmul") return matmul(one, table, n_threads);
  if (one.op == "gate_up") return gate_up(one, table, n_threads);
  if (one.op == "embed") return embed(one, table);
  if (one.op == "attention") return attention(one, table, n_threads);
  if (one.op == "quantize_weights") return quantize_weights(one);
  throw FileError(one.name + ": there is no op " + one.op);
}

}  // namespace llama2q::golden
