#include "calibrate/ldl.h"

#include <algorithm>

#include "base/buffer.h"
#include "calibrate/product.h"

namespace llama2q {
namespace {

constexpr int64_t kStripFloats = kLdlBlock * kLdlStrip;

class Factorization {
 public:
  Factorization(const KernelTable& table, ThreadPool& pool, float* h, int64_t n)
      : table_(table), pool_(pool), products_(table, pool), h_(h), n_(n) {
    block_.reserve(2 * kLdlBlock * kLdlBlock + kLdlBlock);
    strips_.reserve(checked_multiply(pool.n_threads(), 2 * kStripFloats));
    panels_.reserve(checked_multiply(n, 2 * kLdlBlock));
  }

  // Columns [first, first + width), which the earlier blocks have been taken off. Returns the first
  // bad pivot, or -1.
  int64_t eliminate(int64_t first, int64_t width) {
    const int64_t bad = factor_block(first, width);
    if (bad >= 0) return bad;
    const int64_t below = first + width, n_below = n_ - below;
    const int64_t n_strips = (n_below + kLdlStrip - 1) / kLdlStrip;
    pool_.parallel_for(n_strips, 1, [&](int64_t strip, int64_t, int thread) {
      solve_strip(first, width, below + strip * kLdlStrip, thread);
    });
    products_.add({.a = panel_of_w(),
                   .b = panel_of_l(),
                   .c = h_ + below * n_ + below,
                   .m = n_below,
                   .n = n_below,
                   .depth = width,
                   .a_stride = n_,
                   .b_stride = n_,
                   .c_stride = n_,
                   .subtract = true,
                   .lower = true});
    return -1;
  }

 private:
  float* block() { return block_.data(); }
  float* negated() { return block_.data() + kLdlBlock * kLdlBlock; }
  float* pivots() { return block_.data() + 2 * kLdlBlock * kLdlBlock; }
  float* panel_of_w() { return panels_.data(); }
  float* panel_of_l() { return panels_.data() + kLdlBlock * n_; }

  int64_t factor_block(int64_t first, int64_t width) {
    float* w = block();
    float* h = h_ + first * n_ + first;
    std::fill(w, pivots(), 0.0f);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j <= i; ++j) w[j * kLdlBlock + i] = h[i * n_ + j];
    }
    const int64_t bad = table_.ldl_block(w, negated(), width);
    if (bad >= 0) return first + bad;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < i; ++j) h[i * n_ + j] = -negated()[j * kLdlBlock + i];
      pivots()[i] = h[i * n_ + i] = w[i * kLdlBlock + i];
    }
    return -1;
  }

  // Rows of H from `row` on, beside the block; the last strip may reach beyond the matrix.
  void solve_strip(int64_t first, int64_t width, int64_t row, int thread) {
    float *w = strips_.data() + thread * 2 * kStripFloats, *l = w + kStripFloats;
    const int64_t n_rows = std::min(n_ - row, kLdlStrip);
    float* h = h_ + row * n_ + first;
    if (n_rows < kLdlStrip) std::fill(w, l, 0.0f);
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t j = 0; j < width; ++j) w[j * kLdlStrip + i] = h[i * n_ + j];
    }
    table_.ldl_strip(negated(), pivots(), width, w, l);
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t j = 0; j < width; ++j) h[i * n_ + j] = l[j * kLdlStrip + i];
    }
    const int64_t at = row - first - width;
    for (int64_t j = 0; j < width; ++j) {
      std::copy_n(w + j * kLdlStrip, n_rows, panel_of_w() + j * n_ + at);
      std::copy_n(l + j * kLdlStrip, n_rows, panel_of_l() + j * n_ + at);
    }
  }

  const KernelTable& table_;
  ThreadPool& pool_;
  Products products_;
  float* h_;  // [n, n]
  int64_t n_;
  Buffer<float> block_;   // w, negated [kLdlBlock, kLdlBlock], pivots [kLdlBlock]
  Buffer<float> strips_;  // per thread w, l [kLdlBlock, kLdlStrip]
  Buffer<float> panels_;  // w, l [kLdlBlock, n], of the rows below the block
};

}  // namespace

int64_t ldl(const KernelTable& table, ThreadPool& pool, float* h, int64_t n,
            const std::function<void()>& interruption) {
  Factorization factorization(table, pool, h, n);
  for (int64_t first = 0; first < n; first += kLdlBlock) {
    const int64_t bad = factorization.eliminate(first, std::min(n - first, kLdlBlock));
    if (bad >= 0) return bad;
    interruption();
  }
  return -1;
}

void mirror_lower(ThreadPool& pool, float* h, int64_t n) {
  constexpr int64_t kTile = 64;
  const int64_t n_tiles = (n + kTile - 1) / kTile;
  pool.parallel_for(n_tiles, 1, [&](int64_t tile, int64_t, int) {
    const int64_t top = tile * kTile, bottom = std::min(n, top + kTile);
    for (int64_t left = 0; left <= top; left += kTile) {
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = left; j < std::min(i, left + kTile); ++j) h[j * n + i] = h[i * n + j];
      }
    }
  });
}

}  // namespace llama2q
