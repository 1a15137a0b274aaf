// KV cache rows and fused attention over a block table (DESIGN.md section 5.4).
#pragma once

#include "base/types.h"
#include "kernels/args.h"
#include "kernels/math.h"

namespace llama2q {

// Index of a cache row, counted in rows of head_dim elements.
template <class V>
int64_t cache_row(const KvLayerView& cache, int64_t block, int64_t kv_head, int64_t slot) {
  return (block * cache.n_kv_heads + kv_head) * kBlockSize + slot;
}

// How one cache type stores a row. `load` gives 16 elements as floats, without the row's scale.
template <class V>
struct CacheF32 {
  static constexpr bool kScaled = false;
  using Element = float;
  static typename V::F load(const float* p) { return V::load(p); }
  static typename V::F load(const float* p, int64_t n) { return V::load_partial(p, n); }
  static bool store(const float* x, int64_t n, float* row, uint16_t*) {
    for (int64_t i = 0; i < n; i += 16) {
      V::store_partial(row + i, V::load_partial(x + i, n - i), n - i);
    }
    return all_finite<V>(x, n);
  }
};

template <class V>
struct CacheF16 {
  static constexpr bool kScaled = false;
  using Element = uint16_t;
  static typename V::F load(const uint16_t* p) { return V::load_f16(p); }
  static typename V::F load(const uint16_t* p, int64_t n) { return V::load_f16_partial(p, n); }
  static bool store(const float* x, int64_t n, uint16_t* row, uint16_t*) {
    for (int64_t i = 0; i < n; i += 16) {
      V::store_f16_partial(row + i, V::load_partial(x + i, n - i), n - i);
    }
    return magnitude_bits<V>(x, n) <= 0x477fe000u;  // 65504
  }
};

// d = f16(amax / 127), rounded up below 2^-14; q = clamp(rint(x / d), +-127).
template <class V>
struct CacheInt8 {
  static constexpr bool kScaled = true;
  using Element = int8_t;
  static typename V::F load(const int8_t* p) { return V::load_int8(p); }
  static typename V::F load(const int8_t* p, int64_t n) { return V::load_int8_partial(p, n); }
  static bool store(const float* x, int64_t n, int8_t* row, uint16_t* scale) {
    const float amax = bits_float(magnitude_bits<V>(x, n));
    const uint16_t half = f32_to_f16_scale(amax / 127.0f);
    *scale = half;
    const bool usable = half < 0x7c00u;  // false for an infinite or NaN amax too
    const bool zero = half == 0 || !usable;
    const typename V::F d = V::broadcast(zero ? 1.0f : f16_to_f32(half));
    for (int64_t i = 0; i < n; i += 16) {
      const typename V::F value = zero ? V::broadcast(0.0f) : V::load_partial(x + i, n - i);
      const typename V::F bounded =
          V::min(V::max(V::div(value, d), V::broadcast(-127.0f)), V::broadcast(127.0f));
      V::store_int8_partial(row + i, V::to_int(bounded), n - i);
    }
    return usable;
  }
};

template <class V, class Cache>
bool append_row(const AppendArgs& args, int64_t token, const float* x, void* rows,
                uint16_t* scales) {
  const KvLayerView& cache = args.cache;
  const int64_t position = args.positions[token];
  const int64_t block =
      args.block_tables[args.sequence_of_token[token] * args.max_blocks + position / kBlockSize];
  x += token * cache.n_kv_heads * cache.head_dim;
  bool finite = true;
  for (int64_t h = 0; h < cache.n_kv_heads; ++h, x += cache.head_dim) {
    const int64_t row = cache_row<V>(cache, block, h, position % kBlockSize);
    auto* out = static_cast<typename Cache::Element*>(rows) + row * cache.head_dim;
    finite =
        Cache::store(x, cache.head_dim, out, Cache::kScaled ? scales + row : nullptr) && finite;
  }
  return finite;
}

template <class V>
bool append(const AppendArgs& args, int64_t token) noexcept {
  const KvLayerView& cache = args.cache;
  const auto both = [&](auto one) {
    const bool k = one(args.k, cache.k, cache.k_scales);
    const bool v = one(args.v, cache.v, cache.v_scales);
    return k && v;
  };
  switch (cache.type) {
    case KvType::kF32:
      return both([&](const float* x, void* rows, uint16_t* scales) {
        return append_row<V, CacheF32<V>>(args, token, x, rows, scales);
      });
    case KvType::kF16:
      return both([&](const float* x, void* rows, uint16_t* scales) {
        return append_row<V, CacheF16<V>>(args, token, x, rows, scales);
      });
    default:
      return both([&](const float* x, void* rows, uint16_t* scales) {
        return append_row<V, CacheInt8<V>>(args, token, x, rows, scales);
      });
  }
}

// sums[i] = 16 lanes of the products of q with key i, d ascending; the keys stand side by side so
// that their chains of fma overlap. kWhole: head_dim is a multiple of 16.
template <class V, class Cache, bool kWhole, int kKeys>
void dot_keys(const typename Cache::Element* k, const float* q, int64_t head_dim,
              typename V::F* sums) {
  typename V::F acc[kKeys];
  for (int i = 0; i < kKeys; ++i) acc[i] = V::broadcast(0.0f);
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t n = head_dim - d;
    const typename V::F part = kWhole ? V::load(q + d) : V::load_partial(q + d, n);
    for (int i = 0; i < kKeys; ++i) {
      const typename Cache::Element* key = k + i * head_dim + d;
      acc[i] = V::fma(part, kWhole ? Cache::load(key) : Cache::load(key, n), acc[i]);
    }
  }
  for (int i = 0; i < kKeys; ++i) sums[i] = acc[i];
}

// s[key] = tree16(fma over d) * c, with c = scale [* k_scale]. Absent keys of the last lanes: -inf.
template <class V, class Cache, bool kWhole>
void block_scores(const typename Cache::Element* k, const uint16_t* k_scales, const float* q,
                  int64_t head_dim, int64_t n_keys, float scale, float* scores) {
  for (int64_t first = 0; first < n_keys; first += 16) {
    const int64_t present = n_keys - first < 16 ? n_keys - first : 16;
    typename V::F sums[16];
    int64_t i = 0;
    for (; i + 4 <= present; i += 4) {
      dot_keys<V, Cache, kWhole, 4>(k + (first + i) * head_dim, q, head_dim, sums + i);
    }
    for (; i < present; ++i) {
      dot_keys<V, Cache, kWhole, 1>(k + (first + i) * head_dim, q, head_dim, sums + i);
    }
    for (; i < 16; ++i) sums[i] = V::broadcast(0.0f);
    typename V::F c = V::broadcast(scale);
    if (Cache::kScaled) c = V::mul(V::load_f16_partial(k_scales + first, present), c);
    const typename V::F s = V::mul(V::tree16_each(sums), c);
    V::store(scores + first, V::fill_absent(s, present, -__builtin_inff()));
  }
}

// Running state of one query head within a chunk.
struct Softmax {
  float m;  // largest score so far
  float l;  // sum of exp(s - m)
};

// acc[d ...] = acc * r, then fma(weight, v, acc), keys ascending, for kParts times 16 columns side
// by side. v points to column d of the first key.
template <class V, class Cache, bool kWhole, int kParts>
void add_values(const typename Cache::Element* v, const float* weights, int64_t head_dim,
                int64_t n_keys, int64_t d, typename V::F rescale, float* acc) {
  const int64_t n = head_dim - d;  // with kParts > 1 all columns are present
  typename V::F value[kParts];
  for (int i = 0; i < kParts; ++i) {
    value[i] = V::mul(V::load_partial(acc + d + 16 * i, n - 16 * i), rescale);
  }
  for (int64_t key = 0; key < n_keys; ++key, v += head_dim) {
    const typename V::F weight = V::broadcast(weights[key]);
    for (int i = 0; i < kParts; ++i) {
      value[i] = V::fma(weight, kWhole ? Cache::load(v + 16 * i) : Cache::load(v, n), value[i]);
    }
  }
  for (int i = 0; i < kParts; ++i) V::store_partial(acc + d + 16 * i, value[i], n - 16 * i);
}

// Adds a block of keys: m' = max(m, block maximum), r = exp(m - m'), p = exp(s - m'),
// l = fma(l, r, tree16(p)), acc = acc * r, then fma(p [* v_scale], v, acc), keys ascending.
template <class V, class Cache, bool kWhole>
void add_block(const typename Cache::Element* v, const uint16_t* v_scales, int64_t head_dim,
               int64_t n_keys, float* scores, Softmax& state, float* acc) {
  using F = typename V::F;
  F block_max = V::broadcast(-__builtin_inff());
  for (int64_t i = 0; i < n_keys; i += 16) block_max = V::max(block_max, V::load(scores + i));
  const float block_m = V::max_lanes(block_max);
  const float m = state.m > block_m ? state.m : block_m;
  const float r = V::first(exp_lanes<V>(V::broadcast(state.m - m)));
  F sum = V::broadcast(0.0f);
  for (int64_t i = 0; i < n_keys; i += 16) {
    const F p = exp_lanes<V>(V::sub(V::load(scores + i), V::broadcast(m)));
    sum = V::add(sum, p);
    V::store(scores + i, p);
  }
  state.m = m;
  state.l = V::fma_scalar(state.l, r, V::tree16(sum));
  if (Cache::kScaled) {
    for (int64_t key = 0; key < n_keys; ++key) scores[key] *= f16_to_f32(v_scales[key]);
  }
  const F rescale = V::broadcast(r);
  int64_t d = 0;
  for (; kWhole && d + 64 <= head_dim; d += 64) {
    add_values<V, Cache, kWhole, 4>(v + d, scores, head_dim, n_keys, d, rescale, acc);
  }
  for (; d < head_dim; d += 16) {
    add_values<V, Cache, kWhole, 1>(v + d, scores, head_dim, n_keys, d, rescale, acc);
  }
}

// Folds chunk `b` into the running state `a`: both rescaled to the common maximum, then added.
template <class V>
void fold_chunk(const Softmax& b, const float* acc_b, int64_t head_dim, Softmax& a, float* acc_a) {
  const float m = a.m > b.m ? a.m : b.m;
  const float ra = V::first(exp_lanes<V>(V::broadcast(a.m - m)));
  const float rb = V::first(exp_lanes<V>(V::broadcast(b.m - m)));
  a.m = m;
  a.l = V::fma_scalar(a.l, ra, b.l * rb);
  for (int64_t d = 0; d < head_dim; d += 16) {
    const typename V::F folded =
        V::fma(V::load_partial(acc_a + d, head_dim - d), V::broadcast(ra),
               V::mul(V::load_partial(acc_b + d, head_dim - d), V::broadcast(rb)));
    V::store_partial(acc_a + d, folded, head_dim - d);
  }
}

// Scratch: per query head acc [head_dim] and total [head_dim], the two states, scores [64].
template <class V, class Cache, bool kWhole>
void attend_typed(const AttentionArgs& args, int64_t token, int64_t kv_head, float* scratch) {
  const KvLayerView& cache = args.cache;
  const int64_t head_dim = cache.head_dim;
  const int64_t group = args.n_heads / cache.n_kv_heads;
  const int64_t first_head = token * args.n_heads + kv_head * group;
  const float* q = args.q + first_head * head_dim;
  float* out = args.out + first_head * head_dim;
  float* acc = scratch;                                           // [group, head_dim]
  float* scores = acc + group * head_dim;                         // [64]
  auto* chunk = reinterpret_cast<Softmax*>(scores + kBlockSize);  // [group]
  auto* total = chunk + group;                                    // [group]
  const int32_t* table = args.block_tables + args.sequence_of_token[token] * args.max_blocks;
  const int64_t n_keys = args.positions[token] + int64_t{1};
  const int64_t n_blocks = (n_keys + kBlockSize - 1) / kBlockSize;
  for (int64_t first = 0; first < n_blocks; first += kChunkBlocks) {
    const int64_t last = first + kChunkBlocks < n_blocks ? first + kChunkBlocks : n_blocks;
    // The first chunk accumulates in `out` itself, later ones beside it.
    float* sums = first == 0 ? out : acc;
    Softmax* states = first == 0 ? total : chunk;
    for (int64_t i = 0; i < group * head_dim; ++i) sums[i] = 0.0f;
    for (int64_t h = 0; h < group; ++h) states[h] = {-__builtin_inff(), 0.0f};
    for (int64_t b = first; b < last; ++b) {
      const int64_t present = n_keys - b * kBlockSize;
      const int64_t keys = present < kBlockSize ? present : kBlockSize;
      const int64_t row = cache_row<V>(cache, table[b], kv_head, 0);
      const auto* k = static_cast<const typename Cache::Element*>(cache.k) + row * head_dim;
      const auto* v = static_cast<const typename Cache::Element*>(cache.v) + row * head_dim;
      const uint16_t* k_scales = Cache::kScaled ? cache.k_scales + row : nullptr;
      const uint16_t* v_scales = Cache::kScaled ? cache.v_scales + row : nullptr;
      for (int64_t h = 0; h < group; ++h) {
        block_scores<V, Cache, kWhole>(k, k_scales, q + h * head_dim, head_dim, keys, args.scale,
                                       scores);
        add_block<V, Cache, kWhole>(v, v_scales, head_dim, keys, scores, states[h],
                                    sums + h * head_dim);
      }
    }
    if (first == 0) continue;
    for (int64_t h = 0; h < group; ++h) {
      fold_chunk<V>(chunk[h], acc + h * head_dim, head_dim, total[h], out + h * head_dim);
    }
  }
  for (int64_t h = 0; h < group; ++h, out += head_dim) {
    for (int64_t d = 0; d < head_dim; d += 16) {
      const typename V::F sums = V::load_partial(out + d, head_dim - d);
      V::store_partial(out + d, V::div(sums, V::broadcast(total[h].l)), head_dim - d);
    }
  }
}

template <class V, class Cache>
void attend_in(const AttentionArgs& args, int64_t token, int64_t kv_head, float* scratch) {
  if (args.cache.head_dim % 16 == 0) {
    attend_typed<V, Cache, true>(args, token, kv_head, scratch);
  } else {
    attend_typed<V, Cache, false>(args, token, kv_head, scratch);
  }
}

template <class V>
void attend(const AttentionArgs& args, int64_t token, int64_t kv_head, float* scratch) noexcept {
  switch (args.cache.type) {
    case KvType::kF32:
      return attend_in<V, CacheF32<V>>(args, token, kv_head, scratch);
    case KvType::kF16:
      return attend_in<V, CacheF16<V>>(args, token, kv_head, scratch);
    case KvType::kInt8:
      return attend_in<V, CacheInt8<V>>(args, token, kv_head, scratch);
  }
}

}  // namespace llama2q
