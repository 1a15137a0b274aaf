// Fused attention over a block table (DESIGN.md section 5.4): a tile of query rows that share a KV
// head goes through the cache chunk by chunk. A chunk is scored whole, then softmaxed, then its
// values are added: per row that is the contract's order.
#pragma once

#include "kernels/args.h"
#include "kernels/attention_tiles.h"
#include "kernels/kv_rows.h"
#include "kernels/math.h"

namespace llama2q {

inline constexpr int64_t kChunkKeys = kChunkBlocks * kBlockSize;

// Running state of a query row within a chunk, or over the chunks so far: acc [padded_dim], then
// these two.
struct Softmax {
  float m;  // largest score so far
  float l;  // sum of exp(s - m)
};

// The query rows of a tile, with its work space.
struct QueryRows {
  int64_t n;
  int64_t padded_dim;
  int64_t state_stride;       // floats from one state to the next
  int64_t n_keys[kTileRows];  // that each row may see; they ascend
  const int32_t* table;       // of the rows' sequence
  float* q;                   // f32 [n, padded_dim], zero beyond head_dim
  float* states;              // f32 [2, n, state_stride]: over all chunks, of one chunk
  float* scores;              // f32 [n, 256]
  float* rescale;             // f32 [n, 4]: exp(m - m') of each block of the chunk
  float* widened;             // f32 [64, padded_dim] where head_dim is no multiple of 16
  Softmax* softmax(float* state) const { return reinterpret_cast<Softmax*>(state + padded_dim); }
};

// Index of row r of a tile among args.q and args.out, in rows of head_dim.
inline int64_t query_row(const AttentionArgs& args, const AttentionTile& tile, int64_t r) {
  const int64_t group = args.n_heads / args.cache.n_kv_heads, row = tile.first_row + r;
  return row / group * args.n_heads + tile.kv_head * group + row % group;
}

// The rows without their work space.
inline QueryRows rows_of(const AttentionArgs& args, const AttentionTile& tile) {
  const int64_t group = args.n_heads / args.cache.n_kv_heads;
  QueryRows rows;
  rows.n = tile.n_rows;
  rows.padded_dim = padded_head_dim(args.cache.head_dim);
  rows.state_stride = attention_state(args.cache.head_dim);
  rows.table = args.block_tables + args.sequence_of_token[tile.first_row / group] * args.max_blocks;
  for (int64_t r = 0; r < rows.n; ++r) {
    rows.n_keys[r] = args.positions[(tile.first_row + r) / group] + int64_t{1};
  }
  return rows;
}

template <class V>
QueryRows load_rows(const AttentionArgs& args, const AttentionTile& tile, float* scratch) {
  const int64_t head_dim = args.cache.head_dim;
  QueryRows rows = rows_of(args, tile);
  rows.q = scratch;
  rows.states = rows.q + kTileRows * rows.padded_dim;
  rows.scores = rows.states + 2 * kTileRows * rows.state_stride;
  rows.rescale = rows.scores + kTileRows * kChunkKeys;
  rows.widened = rows.rescale + kTileRows * kChunkBlocks;
  for (int64_t r = 0; r < rows.n; ++r) {
    const float* q = args.q + query_row(args, tile, r) * head_dim;
    for (int64_t d = 0; d < head_dim; d += 16) {
      V::store(rows.q + r * rows.padded_dim + d, V::load_partial(q + d, head_dim - d));
    }
  }
  return rows;
}

// First row that sees a key of the chunk.
inline int64_t first_row_in(const QueryRows& rows, int64_t chunk) {
  int64_t r = 0;
  while (r < rows.n && rows.n_keys[r] <= chunk * kChunkKeys) ++r;
  return r;
}

// Per block m' = max(m, block maximum), r = exp(m - m'), p = exp(s - m'), l = fma(l, r, tree16(p));
// scores become p [* v_scale]. Blocks in which the row sees no key keep r = 1.
template <class V>
void softmax_row(const int64_t* n_keys, int64_t n_blocks, const uint16_t* const* v_scales,
                 float* scores, Softmax& state, float* rescale) {
  using F = typename V::F;
  float m = -__builtin_inff();
  float maxima[kChunkBlocks];
  float shifts[16] = {};
  for (int64_t b = 0; b < n_blocks && n_keys[b] > 0; ++b) {
    const float* s = scores + b * kBlockSize;
    F block_max = V::load(s);
    for (int64_t i = 16; i < n_keys[b]; i += 16) block_max = V::max(block_max, V::load(s + i));
    const float block_m = V::max_lanes(block_max);
    maxima[b] = m > block_m ? m : block_m;
    shifts[b] = m - maxima[b];
    m = maxima[b];
  }
  float factors[16];
  V::store(factors, exp_lanes<V>(V::load(shifts)));
  float l = 0.0f;
  for (int64_t b = 0; b < n_blocks; ++b) {
    rescale[b] = factors[b];
    if (n_keys[b] == 0) continue;
    F sum = V::broadcast(0.0f);
    for (int64_t i = 0; i < n_keys[b]; i += 16) {
      float* s = scores + b * kBlockSize + i;
      F p = exp_lanes<V>(V::sub(V::load(s), V::broadcast(maxima[b])));
      sum = V::add(sum, p);
      if (v_scales[b] != nullptr) p = V::mul(p, V::load_f16(v_scales[b] + i));
      V::store(s, p);
    }
    l = V::fma_scalar(l, factors[b], V::tree16(sum));
  }
  state = {m, l};
}

// A block of K or V as float rows of padded_dim columns.
template <class V, class Element>
BlockRows<float> widen(const BlockRows<Element>& from, int64_t n_keys, int64_t padded_dim,
                       float* to) {
  for (int64_t key = 0; key < n_keys; ++key) {
    for (int64_t d = 0; d < padded_dim; d += 16) {
      const Element* p = from.rows + key * from.stride + d;
      V::store(to + key * padded_dim + d, V::widen_partial(p, from.stride - d));
    }
  }
  return {to, from.scales, padded_dim, nullptr, 0};
}

// Scores of one block for the rows from `first`.
template <class V, class Element>
void score_rows(const QueryRows& rows, const BlockRows<Element>& k, float scale, int64_t first,
                const int64_t* counts, float* scores) {
  for_row_groups<V::kQueryTile>(first, rows.n, [&](int64_t r, auto n) {
    BlockRows<Element> block = k;
    if (r != first) block.ahead = 0;
    score_tile<V, decltype(n)::kValue>(block, scale, rows.q + r * rows.padded_dim, rows.padded_dim,
                                       counts + r, scores + r * kChunkKeys, kChunkKeys);
  });
}

// Adds the values of one block to the accumulators of the rows from `first`.
template <class V, class Element>
void add_values(const QueryRows& rows, const BlockRows<Element>& v, int64_t first,
                const int64_t* counts, const float* weights, const float* rescale, float* states) {
  for_row_groups<V::kQueryTile>(first, rows.n, [&](int64_t r, auto n) {
    constexpr int kRows = decltype(n)::kValue;
    BlockRows<Element> block = v;
    if (r != first) block.ahead = 0;
    const float* p = weights + r * kChunkKeys;
    float* acc = states + r * rows.state_stride;
    value_rows<V, kRows>(block, rows.padded_dim, 0, counts[r], p, kChunkKeys,
                         rescale + r * kChunkBlocks, kChunkBlocks, acc, rows.state_stride);
    // Keys that the later rows see beyond the first one's last.
    const float one = 1.0f;
    block.ahead = 0;
    for (int64_t i = 1; i < kRows; ++i) {
      if (counts[r + i] == counts[r]) continue;
      value_rows<V, 1>(block, rows.padded_dim, counts[r], counts[r + i], p + i * kChunkKeys, 0,
                       &one, 0, acc + i * rows.state_stride, 0);
    }
  });
}

// The keys that are read after a chunk: the next chunk's, or those of the next head, which this
// thread or its neighbour takes up; or null.
template <class V, class Element>
const Element* keys_after(const KvLayerView& cache, int64_t kv_head, const QueryRows& rows,
                          int64_t chunk) {
  const bool more = (chunk + 1) * kChunkKeys < rows.n_keys[rows.n - 1];
  if (!more && kv_head + 1 == cache.n_kv_heads) return nullptr;
  const int64_t block = rows.table[more ? (chunk + 1) * kChunkBlocks : 0];
  const int64_t row = cache_row<V>(cache, block, more ? kv_head : kv_head + 1, 0);
  return static_cast<const Element*>(cache.k) + row * cache.head_dim;
}

// The state of each row that sees a key of the chunk, from this chunk's keys alone.
template <class V, class Element>
void attend_chunk(const AttentionArgs& args, int64_t kv_head, const QueryRows& rows, int64_t chunk,
                  float* states) {
  const KvLayerView& cache = args.cache;
  const int64_t head_dim = cache.head_dim;
  const int64_t first = first_row_in(rows, chunk), end = rows.n_keys[rows.n - 1];
  const int64_t left = end - chunk * kChunkKeys;
  const int64_t n_blocks = left >= kChunkKeys ? kChunkBlocks : (left + kBlockSize - 1) / kBlockSize;
  BlockRows<Element> k[kChunkBlocks], v[kChunkBlocks];
  const uint16_t* v_scales[kChunkBlocks];
  int64_t counts[kChunkBlocks][kTileRows];
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t block = chunk * kChunkBlocks + b;
    const int64_t row = cache_row<V>(cache, rows.table[block], kv_head, 0);
    const auto at = [&](void* data, uint16_t* scales) {
      return BlockRows<Element>{static_cast<const Element*>(data) + row * head_dim,
                                scales == nullptr ? nullptr : scales + row, head_dim, nullptr,
                                keys_to_fetch_ahead<Element>(head_dim)};
    };
    k[b] = at(cache.k, cache.k_scales);
    v[b] = at(cache.v, cache.v_scales);
    v_scales[b] = v[b].scales;
    for (int64_t r = first; r < rows.n; ++r) {
      const int64_t present = rows.n_keys[r] - block * kBlockSize;
      counts[b][r] = present < 0 ? 0 : present < kBlockSize ? present : kBlockSize;
    }
  }
  for (int64_t b = 0; b + 1 < n_blocks; ++b) {
    k[b].next = k[b + 1].rows;
    v[b].next = v[b + 1].rows;
  }
  k[n_blocks - 1].next = v[0].rows;
  v[n_blocks - 1].next = keys_after<V, Element>(cache, kv_head, rows, chunk);
  const bool whole = head_dim % 16 == 0;
  for (int64_t b = 0; b < n_blocks; ++b) {
    float* scores = rows.scores + b * kBlockSize;
    if (whole) {
      score_rows<V>(rows, k[b], args.scale, first, counts[b], scores);
    } else {
      const auto floats = widen<V>(k[b], counts[b][rows.n - 1], rows.padded_dim, rows.widened);
      score_rows<V>(rows, floats, args.scale, first, counts[b], scores);
    }
  }
  for (int64_t r = first; r < rows.n; ++r) {
    int64_t row_counts[kChunkBlocks];
    for (int64_t b = 0; b < n_blocks; ++b) row_counts[b] = counts[b][r];
    float* state = states + r * rows.state_stride;
    softmax_row<V>(row_counts, n_blocks, v_scales, rows.scores + r * kChunkKeys,
                   *rows.softmax(state), rows.rescale + r * kChunkBlocks);
    for (int64_t d = 0; d < rows.padded_dim; d += 16) V::store(state + d, V::broadcast(0.0f));
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    const float* weights = rows.scores + b * kBlockSize;
    if (whole) {
      add_values<V>(rows, v[b], first, counts[b], weights, rows.rescale + b, states);
    } else {
      const auto floats = widen<V>(v[b], counts[b][rows.n - 1], rows.padded_dim, rows.widened);
      add_values<V>(rows, floats, first, counts[b], weights, rows.rescale + b, states);
    }
  }
}

// Folds chunk `b` into the state `a`: both rescaled to the common maximum, then added.
template <class V>
void fold_chunk(const QueryRows& rows, float* acc_a, float* acc_b) {
  Softmax& a = *rows.softmax(acc_a);
  const Softmax& b = *rows.softmax(acc_b);
  const float m = a.m > b.m ? a.m : b.m;
  const float ra = V::first(exp_lanes<V>(V::broadcast(a.m - m)));
  const float rb = V::first(exp_lanes<V>(V::broadcast(b.m - m)));
  a.m = m;
  a.l = V::fma_scalar(a.l, ra, b.l * rb);
  for (int64_t d = 0; d < rows.padded_dim; d += 16) {
    const typename V::F folded =
        V::fma(V::load(acc_a + d), V::broadcast(ra), V::mul(V::load(acc_b + d), V::broadcast(rb)));
    V::store(acc_a + d, folded);
  }
}

// Folds the states of a chunk into those of the chunks before it.
template <class V>
void fold_states(const QueryRows& rows, int64_t chunk, float* total, float* states) {
  for (int64_t r = first_row_in(rows, chunk); r < rows.n; ++r) {
    fold_chunk<V>(rows, total + r * rows.state_stride, states + r * rows.state_stride);
  }
}

// out = acc / l.
template <class V>
void write_rows(const AttentionArgs& args, const AttentionTile& tile, const QueryRows& rows,
                float* states) {
  const int64_t head_dim = args.cache.head_dim;
  for (int64_t r = 0; r < rows.n; ++r) {
    float* out = args.out + query_row(args, tile, r) * head_dim;
    float* state = states + r * rows.state_stride;
    const typename V::F l = V::broadcast(rows.softmax(state)->l);
    for (int64_t d = 0; d < head_dim; d += 16) {
      V::store_partial(out + d, V::div(V::load(state + d), l), head_dim - d);
    }
  }
}

inline int64_t chunks_of(const QueryRows& rows) {
  return (rows.n_keys[rows.n - 1] + kChunkKeys - 1) / kChunkKeys;
}

template <class V, class Element>
void attend_typed(const AttentionArgs& args, const AttentionTile& tile, float* scratch) {
  const QueryRows rows = load_rows<V>(args, tile, scratch);
  float* total = rows.states;
  float* part = total + kTileRows * rows.state_stride;
  attend_chunk<V, Element>(args, tile.kv_head, rows, 0, total);
  for (int64_t chunk = 1; chunk < chunks_of(rows); ++chunk) {
    attend_chunk<V, Element>(args, tile.kv_head, rows, chunk, part);
    fold_states<V>(rows, chunk, total, part);
  }
  write_rows<V>(args, tile, rows, total);
}

template <class V, class Element>
void attend_chunks_typed(const AttentionArgs& args, const AttentionTile& tile, int64_t begin,
                         int64_t end, float* scratch, float* states) {
  const QueryRows rows = load_rows<V>(args, tile, scratch);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    attend_chunk<V, Element>(args, tile.kv_head, rows, chunk,
                             states + chunk * rows.n * rows.state_stride);
  }
}

template <class V>
void attend(const AttentionArgs& args, const AttentionTile& tile, float* scratch) noexcept {
  switch (args.cache.type) {
    case KvType::kF32:
      return attend_typed<V, float>(args, tile, scratch);
    case KvType::kF16:
      return attend_typed<V, uint16_t>(args, tile, scratch);
    case KvType::kInt8:
      return attend_typed<V, int8_t>(args, tile, scratch);
  }
}

template <class V>
void attend_chunks(const AttentionArgs& args, const AttentionTile& tile, int64_t begin, int64_t end,
                   float* scratch, float* states) noexcept {
  switch (args.cache.type) {
    case KvType::kF32:
      return attend_chunks_typed<V, float>(args, tile, begin, end, scratch, states);
    case KvType::kF16:
      return attend_chunks_typed<V, uint16_t>(args, tile, begin, end, scratch, states);
    case KvType::kInt8:
      return attend_chunks_typed<V, int8_t>(args, tile, begin, end, scratch, states);
  }
}

template <class V>
void fold_chunks(const AttentionArgs& args, const AttentionTile& tile, float* states) noexcept {
  const QueryRows rows = rows_of(args, tile);
  for (int64_t chunk = 1; chunk < chunks_of(rows); ++chunk) {
    fold_states<V>(rows, chunk, states, states + chunk * rows.n * rows.state_stride);
  }
  write_rows<V>(args, tile, rows, states);
}

}  // namespace llama2q
