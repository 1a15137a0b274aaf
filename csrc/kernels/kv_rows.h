// Rows of the KV cache: where they lie, and how K and V of a token are stored (DESIGN.md section
// 5.4).
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

// How one cache type stores a row; says whether every value was finite and representable.
template <class V>
struct CacheF32 {
  static constexpr bool kScaled = false;
  using Element = float;
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

template <class V, class Cache>
bool append_in(const AppendArgs& args, int64_t token) {
  const KvLayerView& cache = args.cache;
  const bool k = append_row<V, Cache>(args, token, args.k, cache.k, cache.k_scales);
  const bool v = append_row<V, Cache>(args, token, args.v, cache.v, cache.v_scales);
  return k && v;
}

template <class V>
bool append(const AppendArgs& args, int64_t token) noexcept {
  switch (args.cache.type) {
    case KvType::kF32:
      return append_in<V, CacheF32<V>>(args, token);
    case KvType::kF16:
      return append_in<V, CacheF16<V>>(args, token);
    default:
      return append_in<V, CacheInt8<V>>(args, token);
  }
}

}  // namespace llama2q
