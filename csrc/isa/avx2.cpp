// ISA: AVX2 + FMA + F16C. CPUs: Intel since Haswell (2013), AMD since Excavator and Zen.
//
// Requires: AVX2, FMA, F16C, and an operating system that saves the YMM registers (XCR0).
// Tricks: 16 lanes are two registers. A signed byte product is vpmaddubsw of |a| and sign(w, a):
// at most 2 * 127 * 127 = 32258, so the 16-bit sums never saturate (code -128 is refused).
#include <immintrin.h>

#include "isa/tables.h"
#include "kernels/table.h"

namespace llama2q {
namespace {

struct Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kDenseTokens = 4;
  static constexpr int kStreamTokens = 4;
  static constexpr int kPanelTokens = 6;
  static constexpr int kPanelBands = 1;  // 12 of the 16 registers are sums
  static constexpr bool kWideCodes = true;

  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using Line = I;
  using Grid = __m256i;
  using Dot = I;
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
  // Signed products need no correction.
  static Dot start_dot(int32_t) { return zero_int(); }
  static I finish_dot(Dot dot) { return dot; }
  static void dot(Dot& acc, const Line& line, const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    const __m256i a = _mm256_set1_epi32(four);
    const __m256i magnitude = _mm256_abs_epi8(a);
    const __m256i ones = _mm256_set1_epi16(1);
    const auto products = [&](__m256i w) {
      return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, a)), ones);
    };
    acc.low = _mm256_add_epi32(acc.low, products(line.low));
    acc.high = _mm256_add_epi32(acc.high, products(line.high));
  }
  static void dot(Dot& acc, const Line& low, const Line& high, const int8_t* x,
                  const int8_t* next) {
    dot(acc, low, x);
    dot(acc, high, next);
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

  // Any weights: int16 x int16, two products per lane and instruction, no sign to move.
  struct Panel {
    static constexpr int64_t kColumns = 2, kUnitCodes = 2, kRunLines = 0;
    using Code = int16_t;
    using Weights = Pair;
    using Unit = __m256i;
    using Dot = I;

    static Grid grid(const MatrixView& w) { return load_grid(w.grid); }
    static const Code* codes(const ActivationView& x) { return x.wide_codes; }
    // Columns 0 and 2 of each quad, then 1 and 3.
    static uint8_t* store(const Line& line, uint8_t* out, int64_t stride) {
      const auto even = [](__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); };
      const auto odd = [](__m256i x) { return _mm256_srai_epi16(x, 8); };
      store_pair(out, {even(line.low), even(line.high)});
      store_pair(out + stride, {odd(line.low), odd(line.high)});
      return out + 2 * stride;
    }
    static Weights load(const uint8_t* p) { return load_pair(p); }
    static Unit broadcast(const Code* p) { return four_bytes(p); }
    static Dot start(int32_t) { return zero_int(); }
    // Assembly, or the compiler starts all products before it adds the first and runs out of
    // registers.
    static void add_products(__m256i& sum, __m256i w, __m256i a) {
      __m256i products;
      __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0"
              : "+x"(sum), "=&x"(products)
              : "x"(w), "x"(a));
    }
    static void multiply(Dot& dot, Weights w, Unit a) {
      add_products(dot.low, w.low, a);
      add_products(dot.high, w.high, a);
    }
    static I finish(Dot dot) { return dot; }
  };

  // The uniform grid: value + 8 is in [0, 15], so that eight products of two fit into int16.
  struct UniformPanel {
    static constexpr int64_t kColumns = 4, kUnitCodes = 4, kRunLines = 8;
    using Code = int8_t;
    using Weights = Pair;
    using Unit = __m256i;
    using Dot = I;
    using Run = I;  // of int16

    static Grid grid(const MatrixView&) {
      alignas(16) static constexpr int8_t kCodes[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
      return load_grid(kCodes);
    }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    static uint8_t* store(const Line& line, uint8_t* out, int64_t stride) {
      store_pair(out, line);
      return out + stride;
    }
    static Weights load(const uint8_t* p) { return load_pair(p); }
    static Unit broadcast(const Code* p) { return four_bytes(p); }
    // From -128 * sum to -8 * sum.
    static Dot start(int32_t correction) {
      const __m256i sum = _mm256_set1_epi32(correction / 16);
      return {sum, sum};
    }
    static void start_run(Run& run, Weights w, Unit a) {
      run = {_mm256_maddubs_epi16(w.low, a), _mm256_maddubs_epi16(w.high, a)};
    }
    static void add_products(__m256i& sum, __m256i w, __m256i a) {
      __m256i products;
      __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
              : "+x"(sum), "=&x"(products)
              : "x"(w), "x"(a));
    }
    static void multiply(Run& run, Weights w, Unit a) {
      add_products(run.low, w.low, a);
      add_products(run.high, w.high, a);
    }
    static void finish_run(Run run, Dot& dot) {
      const __m256i ones = _mm256_set1_epi16(1);
      dot.low = _mm256_add_epi32(dot.low, _mm256_madd_epi16(run.low, ones));
      dot.high = _mm256_add_epi32(dot.high, _mm256_madd_epi16(run.high, ones));
    }
    static I finish(Dot dot) { return dot; }
  };
  template <class Action>
  static void with_int4_panel(const MatrixView& w, Action action) {
    bool uniform = true;
    for (int i = 0; i < 16; ++i) uniform = uniform && w.grid[i] == i - 8;
    if (uniform) {
      action(UniformPanel());
    } else {
      action(Panel());
    }
  }

  // Four instructions make 32 products of any int8, two ways: vpsignb, vpmaddubsw, vpmaddwd, vpaddd
  // on bytes (idiom 0), or twice vpmaddwd, vpaddd on int16 (idiom 1). Sums in int16 would be
  // cheaper and hold only products with a narrower operand, such as the uniform grid's.
  struct Peak {
    static constexpr int kIdioms = 2, kSums = 8;
    template <int kIdiom>
    static constexpr int kProducts = kIdiom == 0 ? 32 : 16;
    using Sum = __m256i;
    using Weights = __m256i;
    struct Activations {
      __m256i value, magnitude;
    };
    static Weights weights(const int8_t* p) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static Activations activations(const int8_t* p) { return {four_bytes(p), four_bytes(p + 32)}; }
    static void keep(__m256i& x) { __asm__ volatile("" : "+x"(x)); }
    static void keep(Activations& a) {
      keep(a.value);
      keep(a.magnitude);
    }
    template <int kIdiom>
    static void dot(Sum& sum, Weights w, const Activations& a) {
      __m256i products;
      if constexpr (kIdiom == 0) {
        const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.value));
        products = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      } else {
        products = _mm256_madd_epi16(w, a.value);
      }
      sum = _mm256_add_epi32(sum, products);
    }
  };
};

}  // namespace

const KernelTable kAvx2Kernels = kKernelTable<Avx2>;

}  // namespace llama2q
