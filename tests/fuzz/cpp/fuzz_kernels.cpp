// Single kernels: every instruction set beside the scalar one, on arrays of exact size.
#include <algorithm>
#include <cmath>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "fuzz_matrix.h"
#include "input.h"

namespace llama2q::fuzz {
namespace {

const KernelTable& scalar() { return *available_kernels().front(); }

Exact<float> reals(Input& input, int64_t n) {
  Exact<float> values(n);
  const uint8_t kind = input.byte();
  Noise noise(input.byte());
  for (float& value : values) value = kind % 2 == 0 ? input.real() : noise.real() * 4.0f;
  return values;
}

// NaN's bits are not part of the contract.
void expect_equal_reals(const char* what, const char* isa, const Exact<float>& a,
                        const Exact<float>& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    const float x = a.data()[i], y = b.data()[i];
    if (float_bits(x) != float_bits(y) && !(x != x && y != y)) fail(what, isa);
  }
}

}  // namespace

void fuzz_rows(Input& input) {
  const FloatEnv environment;
  const int64_t n = input.between(1, 200);
  const int64_t group_size = input.pick<int64_t>({32, 64, 128});
  const int64_t n_groups = (n + group_size - 1) / group_size;
  const Exact<float> x = reals(input, n), w = reals(input, n);
  const float eps = std::abs(static_cast<float>(input.byte())) * 1e-6f;
  const float divisor = static_cast<float>(input.byte() + 1) / 64.0f;
  struct Results {
    Exact<int8_t> codes;
    Exact<float> scales, norm, swiglu, exp, scaled, rotated;
    Exact<int32_t> corrections;
    bool row_finite, all_finite;
    float largest;
  };
  const int64_t even = n / 2 * 2;
  const auto run = [&](const KernelTable& table) {
    Results r{Exact<int8_t>(n_groups * group_size),
              Exact<float>(n_groups),
              Exact<float>(n),
              Exact<float>(n),
              Exact<float>(n),
              Exact<float>(n),
              Exact<float>(even),
              Exact<int32_t>(n_groups),
              false,
              false,
              0.0f};
    r.row_finite = table.quantize_row(x.data(), n, group_size,
                                      {.codes = r.codes.data(),
                                       .wide_codes = nullptr,
                                       .scales = r.scales.data(),
                                       .corrections = r.corrections.data(),
                                       .width = 1,
                                       .token = 0});
    table.rms_norm(x.data(), w.data(), n, eps, r.norm.data());
    table.swiglu(x.data(), w.data(), n, r.swiglu.data());
    table.exp(x.data(), n, r.exp.data());
    table.exp_scaled(x.data(), n, 1.5f, divisor, r.scaled.data());
    std::copy_n(x.data(), even, r.rotated.data());
    table.rope(r.rotated.data(), w.data(), w.data(), 1, even);
    r.all_finite = table.all_finite(x.data(), n);
    r.largest = table.max_finite(x.data(), n);
    return r;
  };
  const Results expected = run(scalar());
  if (expected.row_finite != expected.all_finite) fail("quantize_row's verdict differs", "scalar");
  for (const KernelTable* table : available_kernels()) {
    const Results found = run(*table);
    const char* isa = table->name;
    if (found.row_finite != expected.row_finite || found.all_finite != expected.all_finite) {
      fail("finite differs", isa);
    }
    if (float_bits(found.largest) != float_bits(expected.largest) &&
        !(found.largest != found.largest && expected.largest != expected.largest)) {
      fail("max_finite differs", isa);
    }
    if (expected.row_finite) {
      expect_equal("codes differ", isa, expected.codes, found.codes);
      expect_equal("scales differ", isa, expected.scales, found.scales);
      expect_equal("corrections differ", isa, expected.corrections, found.corrections);
    }
    expect_equal_reals("rms_norm differs", isa, expected.norm, found.norm);
    expect_equal_reals("swiglu differs", isa, expected.swiglu, found.swiglu);
    expect_equal_reals("exp differs", isa, expected.exp, found.exp);
    expect_equal_reals("exp_scaled differs", isa, expected.scaled, found.scaled);
    expect_equal_reals("rope differs", isa, expected.rotated, found.rotated);
  }
}

void fuzz_matmul(Input& input) {
  const FloatEnv environment;
  const int64_t rows = input.between(1, 70), cols = input.between(1, 150), n = input.between(0, 80);
  const bool wild = input.byte() % 8 == 0;
  const Matrix matrix(input, rows, cols, input.pick<int64_t>({32, 64, 128}), wild);
  const Embedding table_rows(input, rows, cols, input.pick<int64_t>({32, 64, 128}), wild);
  const Exact<float> x = reals(input, n * cols);
  const int64_t id = input.between(0, rows - 1);
  // Rarely several: on a busy machine each phase waits for the system to run them.
  const int threads = input.byte() % 16 == 0 ? 3 : 1;
  struct Results {
    bool finite;
    Exact<float> y, row;
  };
  const auto run = [&](const KernelTable& table, int n_threads) {
    Results r{false, Exact<float>(n * rows), Exact<float>(cols)};
    CpuBackend backend(table, n_threads);
    r.finite = backend.matmul(matrix.view, n, x.data(), r.y.data());
    table.embed(table_rows.view, id, r.row.data());
    return r;
  };
  const Results expected = run(scalar(), 1);
  for (const KernelTable* table : available_kernels()) {
    const Results found = run(*table, threads);
    if (found.finite != expected.finite) fail("matmul's verdict differs", table->name);
    if (wild) continue;
    if (found.finite) expect_equal_reals("matmul differs", table->name, expected.y, found.y);
    expect_equal_reals("embed differs", table->name, expected.row, found.row);
  }
}

// Rows from those of a token on: as a tile, and by chunks, which must give the same.
void attend_both_ways(const KernelTable& table, const AttentionArgs& args, int64_t token,
                      int64_t n_rows) {
  const int64_t head_dim = args.cache.head_dim, group = args.n_heads / args.cache.n_kv_heads;
  const int64_t last = args.positions[token + (n_rows - 1) / group];
  const int64_t n_chunks = last / (kChunkBlocks * kBlockSize) + 1;
  Exact<float> scratch(attention_scratch(head_dim));
  Exact<float> states(n_chunks * n_rows * attention_state(head_dim));
  Exact<float> other((token + (n_rows + group - 1) / group) * args.n_heads * head_dim);
  AttentionArgs again = args;
  again.out = other.data();
  for (int64_t head = 0; head < args.cache.n_kv_heads; ++head) {
    const AttentionTile tile{head, token * group, n_rows};
    table.attend(args, tile, scratch.data());
    for (int64_t chunk = n_chunks; chunk-- > 0;) {
      table.attend_chunks(again, tile, chunk, chunk + 1, scratch.data(), states.data());
    }
    table.fold_chunks(again, tile, states.data());
  }
  Exact<float> out(other.size());
  std::copy_n(args.out, out.size(), out.data());
  expect_equal_reals("attention by chunks differs", table.name, out, other);
}

// A cache in arrays of exact size: the address sanitizer does not see the pages of KvCache.
void fuzz_attention(Input& input) {
  const FloatEnv environment;
  const KvType type = input.pick({KvType::kF32, KvType::kF16, KvType::kInt8});
  const int64_t n_kv_heads = input.between(1, 2), head_dim = 2 * input.between(1, 20);
  const int64_t n_heads = n_kv_heads * input.between(1, 3), n_keys = input.between(1, 400);
  const int64_t used = (n_keys + kBlockSize - 1) / kBlockSize,
                n_blocks = used + input.between(0, 2);
  const int64_t bytes = n_blocks * n_kv_heads * kBlockSize * head_dim *
                        (type == KvType::kF32   ? 4
                         : type == KvType::kF16 ? 2
                                                : 1);
  const int64_t n_scales = type == KvType::kInt8 ? n_blocks * n_kv_heads * kBlockSize : 0;
  Exact<int32_t> blocks(used), positions(n_keys), sequences(n_keys);
  for (int64_t i = 0; i < used; ++i) blocks[i] = static_cast<int32_t>(i);
  std::rotate(blocks.begin(), blocks.begin() + input.between(0, used - 1), blocks.end());
  if (n_blocks > used && input.byte() % 2 == 0) blocks[0] = static_cast<int32_t>(n_blocks - 1);
  for (int64_t i = 0; i < n_keys; ++i) positions[i] = static_cast<int32_t>(i);
  const Exact<float> k = reals(input, n_keys * n_kv_heads * head_dim);
  const Exact<float> v = reals(input, n_keys * n_kv_heads * head_dim);
  const Exact<float> q = reals(input, n_keys * n_heads * head_dim);
  const int64_t asked = input.between(0, n_keys - 1), n_rows = input.between(1, kTileRows);
  struct Results {
    bool finite;
    Exact<uint8_t> k, v;
    Exact<uint16_t> k_scales, v_scales;
    Exact<float> out;
  };
  const auto run = [&](const KernelTable& table) {
    Results r{true,
              Exact<uint8_t>(bytes),
              Exact<uint8_t>(bytes),
              Exact<uint16_t>(n_scales),
              Exact<uint16_t>(n_scales),
              Exact<float>(n_keys * n_heads * head_dim)};
    const KvLayerView cache{.type = type,
                            .n_blocks = n_blocks,
                            .n_kv_heads = n_kv_heads,
                            .head_dim = head_dim,
                            .k = r.k.data(),
                            .v = r.v.data(),
                            .k_scales = n_scales == 0 ? nullptr : r.k_scales.data(),
                            .v_scales = n_scales == 0 ? nullptr : r.v_scales.data()};
    const AppendArgs append{.cache = cache,
                            .k = k.data(),
                            .v = v.data(),
                            .positions = positions.data(),
                            .sequence_of_token = sequences.data(),
                            .block_tables = blocks.data(),
                            .max_blocks = used};
    for (int64_t t = 0; t < n_keys; ++t) r.finite = table.append(append, t) && r.finite;
    const AttentionArgs args{.cache = cache,
                             .q = q.data(),
                             .out = r.out.data(),
                             .positions = positions.data(),
                             .sequence_of_token = sequences.data(),
                             .block_tables = blocks.data(),
                             .max_blocks = used,
                             .n_heads = n_heads,
                             .scale = 0.25f};
    attend_both_ways(table, args, asked, std::min(n_rows, (n_keys - asked) * n_heads / n_kv_heads));
    return r;
  };
  const Results expected = run(scalar());
  for (const KernelTable* table : available_kernels()) {
    const Results found = run(*table);
    if (found.finite != expected.finite) fail("append's verdict differs", table->name);
    if (!found.finite) continue;  // the step stops there
    expect_equal("the cached keys differ", table->name, expected.k, found.k);
    expect_equal("the cached values differ", table->name, expected.v, found.v);
    expect_equal("the keys' scales differ", table->name, expected.k_scales, found.k_scales);
    expect_equal("the values' scales differ", table->name, expected.v_scales, found.v_scales);
    expect_equal_reals("attention differs", table->name, expected.out, found.out);
  }
}

}  // namespace llama2q::fuzz
