// The KV cache's part of CpuBackend: RoPE and append, and how attention is dealt out to threads.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "backend/cpu_backend.h"

namespace llama2q {
namespace {

// Tokens handed to a thread at a time.
constexpr int64_t kTokenGrain = 4;

// A tile is cut by chunks of keys if there are fewer tiles than this per thread, and the states of
// the chunks fit.
constexpr int64_t kTilesPerThread = 4;
constexpr int64_t kStatesPerThread = 256;

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

// Chunks of keys that a tile's last row sees.
int64_t chunks_of(const Batch& batch, int64_t group, const AttentionTile& tile) {
  const int64_t last = batch.positions[(tile.first_row + tile.n_rows - 1) / group];
  return last / (kChunkBlocks * kBlockSize) + 1;
}

// The most chunks of a tile, and states of rows in all its chunks.
struct ChunkPlan {
  int64_t n_chunks, n_states;
};

ChunkPlan plan_chunks(const Batch& batch, int64_t group, const AttentionTile* tiles,
                      int64_t n_tiles) {
  ChunkPlan plan{1, 1};
  for (int64_t i = 0; i < n_tiles; ++i) {
    const int64_t n_chunks = chunks_of(batch, group, tiles[i]);
    plan.n_chunks = std::max(plan.n_chunks, n_chunks);
    plan.n_states = std::max(plan.n_states, n_chunks * tiles[i].n_rows);
  }
  return plan;
}

}  // namespace

int64_t CpuBackend::attention_bytes() const {
  return scratch_.bytes() + states_.bytes() + tiles_.bytes();
}

int64_t CpuBackend::attention_bytes(const WorkShape& shape, int n_threads) {
  constexpr int64_t kFloat = sizeof(float);
  return n_threads * attention_scratch(shape.head_dim) * kFloat +
         n_threads * kStatesPerThread * attention_state(shape.head_dim) * kFloat +
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

void CpuBackend::attend(const LayerView& layer, const Batch& batch, const KvLayerView& cache,
                        const float* q, float* attended) {
  attend(batch, cache, layer.wq.rows / cache.head_dim, q, attended);
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
  const int64_t group = n_heads / cache.n_kv_heads, n_threads = pool_.n_threads();
  const int64_t scratch_size = attention_scratch(cache.head_dim);
  float* scratch = scratch_.reserve(scratch_size * n_threads);
  AttentionTile* tiles = tiles_.reserve(most_tiles(batch.n_tokens, group));
  const int64_t n_tiles = cut_tiles(batch, group, tiles), n_items = n_tiles * cache.n_kv_heads;
  // Tiles vary fastest, so that threads share the keys of one KV head; a sequence's last tile,
  // which has the most keys, comes first.
  const auto tile_of = [&](int64_t item) {
    AttentionTile tile = tiles[n_tiles - 1 - item % n_tiles];
    tile.kv_head = item / n_tiles;
    return tile;
  };
  const ChunkPlan plan = plan_chunks(batch, group, tiles, n_tiles);
  const int64_t states_size = plan.n_states * attention_state(cache.head_dim);
  float* states = states_.reserve(n_threads * kStatesPerThread * attention_state(cache.head_dim));
  if (n_threads == 1 || plan.n_chunks == 1 || n_items >= kTilesPerThread * n_threads ||
      n_items * plan.n_states > kStatesPerThread * n_threads) {
    pool_.parallel_for(n_items, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        kernels_.attend(args, tile_of(i), scratch + thread * scratch_size);
      }
    });
    return;
  }
  const int64_t n_slices =
      std::min(plan.n_chunks, (2 * kTilesPerThread * n_threads + n_items - 1) / n_items);
  pool_.parallel_for(n_items * n_slices, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = i / n_slices, slice = i % n_slices;
      const AttentionTile tile = tile_of(item);
      const int64_t n_chunks = chunks_of(batch, group, tile);
      kernels_.attend_chunks(args, tile, slice * n_chunks / n_slices,
                             (slice + 1) * n_chunks / n_slices, scratch + thread * scratch_size,
                             states + item * states_size);
    }
  });
  pool_.parallel_for(n_items, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.fold_chunks(args, tile_of(i), states + i * states_size);
    }
  });
}

}  // namespace llama2q
