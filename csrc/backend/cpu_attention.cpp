// The KV cache's part of CpuBackend: RoPE and append, and how attention is dealt out to threads.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "backend/cpu_backend.h"

namespace llama2q {
namespace {

// Tokens handed to a thread at a time.
constexpr int64_t kTokenGrain = 4;

// Tiles of one KV head, at most, for so many tokens.
int64_t most_tiles(int64_t n_tokens, int64_t heads_per_kv_head) {
  return n_tokens * ((heads_per_kv_head + kTileRows - 1) / kTileRows);
}

// Cuts the query rows of one KV head into tiles; returns how many. No tile spans two sequences.
int64_t cut_tiles(const Batch& batch, int64_t group, AttentionTile* tiles) {
  int64_t n_tiles = 0;
  for (int64_t begin = 0, end; begin < batch.n_tokens; begin = end) {
    end = begin + 1;
    while (end < batch.n_tokens && batch.sequence_of_token[end] == batch.sequence_of_token[begin]) {
      ++end;
    }
    for (int64_t row = begin * group; row < end * group; row += kTileRows) {
      tiles[n_tiles++] = {0, row, std::min(kTileRows, end * group - row)};
    }
  }
  return n_tiles;
}

}  // namespace

int64_t CpuBackend::attention_bytes() const { return scratch_.bytes() + tiles_.bytes(); }

int64_t CpuBackend::attention_bytes(const WorkShape& shape, int n_threads) {
  return n_threads * attention_scratch(shape.head_dim) * int64_t{sizeof(float)} +
         most_tiles(shape.n_tokens, shape.heads_per_kv_head) * int64_t{sizeof(AttentionTile)};
}

bool CpuBackend::append(const Batch& batch, const KvLayerView& cache, int64_t n_heads,
                        const float* k, const float* v, float* q) {
  const int64_t head_dim = cache.head_dim, half = head_dim / 2;
  const AppendArgs args{.cache = cache,
                        .k = k,
                        .v = v,
                        .positions = batch.positions,
                        .sequence_of_token = batch.sequence_of_token,
                        .block_tables = batch.block_tables,
                        .max_blocks = batch.max_blocks};
  float* keys = keys_.data();
  std::atomic<bool> finite{true};
  pool_.parallel_for(batch.n_tokens, kTokenGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* cos = batch.cos.data() + t * half;
      const float* sin = batch.sin.data() + t * half;
      kernels_.rope(q + t * n_heads * head_dim, cos, sin, n_heads, head_dim);
      kernels_.rope(keys + t * cache.n_kv_heads * head_dim, cos, sin, cache.n_kv_heads, head_dim);
      if (!kernels_.append(args, t)) finite.store(false, std::memory_order_relaxed);
    }
  });
  return finite.load();
}

void CpuBackend::attend(const Batch& batch, const KvLayerView& cache, int64_t n_heads,
                        const float* q, float* attended) {
  const AttentionArgs args{
      .cache = cache,
      .q = q,
      .out = attended,
      .positions = batch.positions,
      .sequence_of_token = batch.sequence_of_token,
      .block_tables = batch.block_tables,
      .max_blocks = batch.max_blocks,
      .n_heads = n_heads,
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cache.head_dim)))};
  const int64_t group = n_heads / cache.n_kv_heads;
  const int64_t scratch = attention_scratch(cache.head_dim);
  float* all = scratch_.reserve(scratch * pool_.n_threads());
  AttentionTile* tiles = tiles_.reserve(most_tiles(batch.n_tokens, group));
  const int64_t n_tiles = cut_tiles(batch, group, tiles);
  // Tiles vary fastest, so that threads share the keys of one KV head; a sequence's last tile,
  // which has the most keys, comes first.
  pool_.parallel_for(n_tiles * cache.n_kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      AttentionTile tile = tiles[n_tiles - 1 - i % n_tiles];
      tile.kv_head = i / n_tiles;
      kernels_.attend(args, tile, all + thread * scratch);
    }
  });
}

}  // namespace llama2q
