// What the 256-bit instruction sets share: 16 lanes in two registers, lines of weights, panel
// lines.
//
// Included by one ISA unit each, whose flags it is compiled with; hence the anonymous namespace.
#pragma once

#include <immintrin.h>

#include "kernels/table.h"

namespace llama2q {
namespace {

struct Avx2Lanes {
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using Line = I;
  using Grid = __m256i;
  using Part = __m256;
  static constexpr int kPartLanes = 8;
  static constexpr int kTileRegisters = 12;
  static constexpr int kQueryTile = 3;

  static F broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  // Copies n < 16 elements into a zeroed buffer of 16.
  template <class T>
  struct Partial {
    alignas(32) T data[16] = {};
    Partial(const T* p, int64_t n) {
      for (int64_t i = 0; i < n; ++i) data[i] = p[i];
    }
  };
  static F load_partial(const float* p, int64_t n) {
    return n >= 16 ? load(p) : load(Partial<float>(p, n).data);
  }
  static F load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static F load_f16_partial(const uint16_t* p, int64_t n) {
    return n >= 16 ? load_f16(p) : load_f16(Partial<uint16_t>(p, n).data);
  }
  static __m256 widen_bf16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static F load_bf16(const uint16_t* p) {
    return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static F load_bf16_partial(const uint16_t* p, int64_t n) {
    return n >= 16 ? load_bf16(p) : load_bf16(Partial<uint16_t>(p, n).data);
  }
  static F load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  static F load_int8_partial(const int8_t* p, int64_t n) {
    return n >= 16 ? load_int8(p) : load_int8(Partial<int8_t>(p, n).data);
  }
  static F widen_partial(const float* p, int64_t n) { return load_partial(p, n); }
  static F widen_partial(const uint16_t* p, int64_t n) { return load_f16_partial(p, n); }
  static F widen_partial(const int8_t* p, int64_t n) { return load_int8_partial(p, n); }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  static void store_partial(float* p, F x, int64_t n) {
    if (n >= 16) return store(p, x);
    alignas(32) float data[16];
    store(data, x);
    for (int64_t i = 0; i < n; ++i) p[i] = data[i];
  }
  static void store_f16_partial(uint16_t* p, F x, int64_t n) {
    alignas(32) uint16_t data[16];
    uint16_t* out = n >= 16 ? p : data;
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x.low, kNearest));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm256_cvtps_ph(x.high, kNearest));
    if (n < 16) {
      for (int64_t i = 0; i < n; ++i) p[i] = data[i];
    }
  }
  static void store_int8(int8_t* p, I x) {
    const __m128i low =
        _mm_packs_epi32(_mm256_castsi256_si128(x.low), _mm256_extracti128_si256(x.low, 1));
    const __m128i high =
        _mm_packs_epi32(_mm256_castsi256_si128(x.high), _mm256_extracti128_si256(x.high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(low, high));
  }
  static void store_int8_partial(int8_t* p, I x, int64_t n) {
    if (n >= 16) return store_int8(p, x);
    alignas(16) int8_t data[16];
    store_int8(data, x);
    for (int64_t i = 0; i < n; ++i) p[i] = data[i];
  }

  static float widen_f16(uint16_t h) { return _cvtsh_ss(h); }
  static float first(F x) { return _mm256_cvtss_f32(x.low); }

  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static float fma_scalar(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
  }
  static F repeat_even(F x) { return {_mm256_moveldup_ps(x.low), _mm256_moveldup_ps(x.high)}; }
  static F repeat_odd(F x) { return {_mm256_movehdup_ps(x.low), _mm256_movehdup_ps(x.high)}; }
  static F rint(F x) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
  }
  static I to_int(F x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

  static Part part(float x) { return _mm256_set1_ps(x); }
  static Part load_part(const float* p) { return _mm256_loadu_ps(p); }
  static Part load_part(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Part load_part(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_part(float* p, Part x) { _mm256_storeu_ps(p, x); }
  static Part mul_part(Part a, Part b) { return _mm256_mul_ps(a, b); }
  static Part fma_part(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }

  static float tree16(F x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // tree16's order, while the lanes are packed: each step halves the lanes per vector and the
  // vectors. Parts 2 * i and 2 * i + 1 are vector i.
  static F fold_lanes(const Part* x) {
    const auto four = [&](int i) {
      const __m256 a = _mm256_add_ps(x[4 * i], x[4 * i + 1]);
      const __m256 b = _mm256_add_ps(x[4 * i + 2], x[4 * i + 3]);
      return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    return {four(0), four(1)};
  }
  static F finish_trees(const F* x) {
    const auto two = [](__m256 a, __m256 b) {
      return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    };
    const auto one = [&](int i) {
      const __m256 a = two(x[i].low, x[i].high), b = two(x[i + 1].low, x[i + 1].high);
      const __m256 sums =
          _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
      // Its lanes are vectors 0 2 4 6 | 1 3 5 7.
      return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    };
    return {one(0), one(2)};
  }
  static float max_lanes(F x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static __m256 power_of_two(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static F scale_by_power_of_two(F p, F n) {
    return {_mm256_mul_ps(p.low, power_of_two(n.low)), _mm256_mul_ps(p.high, power_of_two(n.high))};
  }
  static F zero_unless_greater(F x, F bound, F value) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, bound.low, _CMP_NLE_UQ), value.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, bound.high, _CMP_NLE_UQ), value.high)};
  }
  static I add_if_greater(I index, F x, F bound, int32_t step) {
    const auto half = [&](__m256i i, __m256 value, __m256 limit) {
      const __m256i greater = _mm256_castps_si256(_mm256_cmp_ps(value, limit, _CMP_GT_OQ));
      return _mm256_add_epi32(i, _mm256_and_si256(greater, _mm256_set1_epi32(step)));
    };
    return {half(index.low, x.low, bound.low), half(index.high, x.high, bound.high)};
  }
  // Both halves of the table are looked at; bit 3 of the index, as the sign, says which is meant.
  static F pick(const float* table, I index) {
    const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
    const auto half = [&](__m256i i) {
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, i),
                              _mm256_permutevar8x32_ps(second, i),
                              _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
    };
    return {half(index.low), half(index.high)};
  }
  static F fill_absent(F x, int64_t n, float filler) {
    alignas(32) float data[16];
    store(data, x);
    for (int64_t i = n; i < 16; ++i) data[i] = filler;
    return load(data);
  }

  static I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I add_int(I a, I b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  static I or_int(I a, I b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
  }
  static I max_int(I a, I b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  static I magnitude_bits(F x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(x.low), mask),
            _mm256_and_si256(_mm256_castps_si256(x.high), mask)};
  }
  static I nan_or_plus_inf(F x) {
    const __m256 inf = _mm256_set1_ps(__builtin_inff());
    const auto one = [&](__m256 half) {
      return _mm256_srli_epi32(_mm256_castps_si256(_mm256_cmp_ps(half, inf, _CMP_NLT_UQ)), 31);
    };
    return {one(x.low), one(x.high)};
  }
  static uint32_t max_lanes(I x) {
    const __m256i eight = _mm256_max_epi32(x.low, x.high);
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return static_cast<uint32_t>(
        _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
  }
  static int32_t sum_lanes(I x) {
    const __m256i eight = _mm256_add_epi32(x.low, x.high);
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }

  static Grid load_grid(const int8_t* grid) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(grid)));
  }
  static Line int8_line(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static void int4_lines(const uint8_t* p, Grid grid, Line& low, Line& high) {
    const Line packed = int8_line(p);
    const __m256i mask = _mm256_set1_epi8(15);
    const auto look_up = [&](__m256i nibbles) {
      return _mm256_shuffle_epi8(grid, _mm256_and_si256(nibbles, mask));
    };
    low = {look_up(packed.low), look_up(packed.high)};
    high = {look_up(_mm256_srli_epi16(packed.low, 4)), look_up(_mm256_srli_epi16(packed.high, 4))};
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  // Into L2 alone: a line on its way to L1 holds one of the few buffers that loads wait in.
  static void prefetch_far(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }

  // A 64-byte load of a panel line, and the sums of 16 rows.
  using Pair = Line;
  static Pair load_pair(const uint8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static void store_pair(uint8_t* p, Pair x) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), x.high);
  }
  static __m256i four_bytes(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
};

}  // namespace
}  // namespace llama2q
