#include "calibrate/product.h"

#include <algorithm>

namespace llama2q {
namespace {

// Few large tiles leave threads idle at the end.
constexpr int64_t kTilesPerThread = 4;
constexpr int64_t kSmallestTile = 96;
static_assert(kGemmTile % kSmallestTile == 0 && kGemmTile / kSmallestTile == 4);

int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

}  // namespace

Products::Products(const KernelTable& table, ThreadPool& pool) : table_(table), pool_(pool) {
  scratch_.reserve(checked_multiply(pool.n_threads(), kGemmScratch));
}

int64_t Products::tile_of(const GemmArgs& p) const {
  int64_t tile = kGemmTile;
  const auto count = [&] { return tiles_of(p.m, tile) * tiles_of(p.n, tile) / (p.lower ? 2 : 1); };
  if (pool_.n_threads() == 1) return tile;
  while (tile > kSmallestTile && count() < kTilesPerThread * pool_.n_threads()) tile /= 2;
  return tile;
}

void Products::add(const GemmArgs& p) {
  const int64_t tile = tile_of(p), across = tiles_of(p.n, tile);
  const int64_t n_tiles = checked_multiply(tiles_of(p.m, tile), across);
  pool_.parallel_for(n_tiles, 1, [&](int64_t index, int64_t, int thread) {
    const int64_t i = index / across * tile, j = index % across * tile;
    if (p.lower && j > i) return;
    GemmArgs part = p;
    part.a += i;
    part.b += j;
    part.c += i * p.c_stride + j;
    part.m = std::min(p.m - i, tile);
    part.n = std::min(p.n - j, tile);
    part.lower = p.lower && i == j;
    table_.gemm(part, scratch_.data() + thread * kGemmScratch);
  });
}

}  // namespace llama2q
