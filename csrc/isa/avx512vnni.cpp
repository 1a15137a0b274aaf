// ISA: AVX-512 F, BW, DQ, VL, VNNI. CPUs: Intel since Ice Lake (servers: Cascade Lake), AMD Zen 4
// on.
//
// Requires: those five, F16C and FMA, and an operating system that saves the ZMM and mask
// registers. Tricks: 16 lanes are one register. vpdpbusd multiplies unsigned by signed bytes: the
// weights go in as value + 128, and the sum starts at -128 * (sum of the activations), which makes
// it exact.
#include <immintrin.h>

#include "isa/tables.h"
#include "kernels/table.h"

namespace llama2q {
namespace {

struct Avx512Vnni {
  static constexpr const char* kName = "avx512vnni";
  static constexpr int kDenseTokens = 8;
  static constexpr int kStreamTokens = 8;
  static constexpr int kStreamTiles = 8;
  static constexpr int kPanelTokens = 6;
  static constexpr int kPanelBands = 2;
  static constexpr bool kRegisterSums = true;  // with the dots, 24 of the 32 registers
  static constexpr bool kWideCodes = false;

  using F = __m512;
  using I = __m512i;
  using Line = __m512i;  // value + 128, unsigned
  using Grid = __m512i;
  // Two sums, so that a single token's chain of products is half as long.
  // Not __m512i: as long as the type says 32-bit lanes, GCC 12 keeps each sum in one register.
  using Lanes32 = int32_t __attribute__((vector_size(64)));
  struct Dot {
    Lanes32 even, odd;
  };

  using Part = __m512;
  static constexpr int kPartLanes = 16;
  static constexpr int kTileRegisters = 24;
  static constexpr int kQueryTile = 6;

  static __mmask16 first_lanes(int64_t n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
  }

  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_partial(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_f16_partial(const uint16_t* p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
  static F widen_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F load_bf16(const uint16_t* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16_partial(const uint16_t* p, int64_t n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
  static F load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F load_int8_partial(const int8_t* p, int64_t n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
  }
  static F widen_partial(const float* p, int64_t n) { return load_partial(p, n); }
  static F widen_partial(const uint16_t* p, int64_t n) { return load_f16_partial(p, n); }
  static F widen_partial(const int8_t* p, int64_t n) { return load_int8_partial(p, n); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_partial(float* p, F x, int64_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
  }
  static void store_f16_partial(uint16_t* p, F x, int64_t n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n),
                             _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_int8(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static void store_int8_partial(int8_t* p, I x, int64_t n) {
    _mm_mask_storeu_epi8(p, first_lanes(n), _mm512_cvtepi32_epi8(x));
  }

  static float widen_f16(uint16_t h) { return _cvtsh_ss(h); }
  static float first(F x) { return _mm512_cvtss_f32(x); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float fma_scalar(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
  }
  static F repeat_even(F x) { return _mm512_moveldup_ps(x); }
  static F repeat_odd(F x) { return _mm512_movehdup_ps(x); }
  static F rint(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static I to_int(F x) { return _mm512_cvtps_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }

  static Part part(float x) { return broadcast(x); }
  static Part load_part(const float* p) { return load(p); }
  static Part load_part(const uint16_t* p) { return load_f16(p); }
  static Part load_part(const int8_t* p) { return load_int8(p); }
  static void store_part(float* p, Part x) { store(p, x); }
  static Part mul_part(Part a, Part b) { return mul(a, b); }
  static Part fma_part(Part a, Part b, Part c) { return fma(a, b, c); }

  static float tree16(F x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // tree16's order, while the lanes are packed: each step halves the lanes per vector and the
  // vectors.
  static F fold_lanes(const Part* x) {
    const auto eight = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const __m512 a = eight(x[0], x[1]), b = eight(x[2], x[3]);
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  static F finish_trees(const F* x) {
    const auto two = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    };
    const __m512 a = two(x[0], x[1]), b = two(x[2], x[3]);
    const __m512 one = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    // Lane 4 * i + j is vector i + 4 * j.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, one);
  }
  static float max_lanes(F x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static F scale_by_power_of_two(F p, F n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
  }
  static F zero_unless_greater(F x, F bound, F value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLE_UQ), value);
  }
  static I add_if_greater(I index, F x, F bound, int32_t step) {
    const __mmask16 greater = _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ);
    return _mm512_mask_add_epi32(index, greater, index, _mm512_set1_epi32(step));
  }
  static F pick(const float* table, I index) {
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
  }
  static F fill_absent(F x, int64_t n, float filler) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(filler), first_lanes(n), x);
  }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I or_int(I a, I b) { return _mm512_or_si512(a, b); }
  static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  static I magnitude_bits(F x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  }
  static I nan_or_plus_inf(F x) {
    const __mmask16 odd = _mm512_cmp_ps_mask(x, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    return _mm512_maskz_set1_epi32(odd, 1);
  }
  static uint32_t max_lanes(I x) {
    const __m256i eight =
        _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return static_cast<uint32_t>(
        _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
  }
  static int32_t sum_lanes(I x) {
    const __m256i eight =
        _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }

  static __m512i unsigned_bytes(__m512i x) {
    return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Grid load_grid(const int8_t* grid) {
    return unsigned_bytes(
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(grid))));
  }
  static Line int8_line(const uint8_t* p) { return unsigned_bytes(_mm512_loadu_si512(p)); }
  static void int4_lines(const uint8_t* p, Grid grid, Line& low, Line& high) {
    const __m512i packed = _mm512_loadu_si512(p);
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_shuffle_epi8(grid, _mm512_and_si512(packed, mask));
    high = _mm512_shuffle_epi8(grid, _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask));
  }
  static Dot start_dot(int32_t correction) { return {Lanes32{} + correction, Lanes32{}}; }
  static I finish_dot(Dot dot) { return reinterpret_cast<__m512i>(dot.even + dot.odd); }
  static Lanes32 add_products(Lanes32 sum, __m512i w, __m512i a) {
    return reinterpret_cast<Lanes32>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), w, a));
  }
  static __m512i four_codes(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static void dot(Dot& acc, Line line, const int8_t* x) {
    acc.even = add_products(acc.even, line, four_codes(x));
  }
  static void dot(Dot& acc, Line low, Line high, const int8_t* x, const int8_t* next) {
    acc.even = add_products(acc.even, low, four_codes(x));
    acc.odd = add_products(acc.odd, high, four_codes(next));
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  // Into L2 alone: a line on its way to L1 holds one of the few buffers that loads wait in.
  static void prefetch_far(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }

  struct Panel {
    static constexpr int64_t kColumns = 4, kUnitCodes = 4, kRunLines = 0;
    using Code = int8_t;
    using Weights = __m512i;
    using Unit = __m512i;
    using Dot = Lanes32;

    static Grid grid(const MatrixView& w) { return load_grid(w.grid); }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    static uint8_t* store(Line line, uint8_t* out, int64_t stride) {
      _mm512_store_si512(out, line);
      return out + stride;
    }
    static Weights load(const uint8_t* p) { return _mm512_load_si512(p); }
    static Unit broadcast(const Code* p) { return four_codes(p); }
    static Dot start(int32_t correction) { return Dot{} + correction; }
    static void multiply(Dot& dot, Weights w, Unit a) { dot = add_products(dot, w, a); }
    static I finish(Dot dot) { return reinterpret_cast<__m512i>(dot); }
  };

  // One vpdpbusd is 64 products, its activations a broadcast memory operand.
  struct Peak {
    static constexpr int kIdioms = 1, kSums = 24;
    template <int kIdiom>
    static constexpr int kProducts = 64;
    using Sum = __m512i;
    using Weights = __m512i;
    using Activations = __m512i;
    static Weights weights(const int8_t* p) { return _mm512_loadu_si512(p); }
    static Activations activations(const int8_t* p) { return four_codes(p); }
    static void keep(__m512i& x) { __asm__ volatile("" : "+v"(x)); }
    template <int kIdiom>
    static void dot(Sum& sum, Weights w, Activations a) {
      sum = _mm512_dpbusd_epi32(sum, w, a);
    }
  };
};

}  // namespace

const KernelTable kAvx512VnniKernels = kKernelTable<Avx512Vnni>;

}  // namespace llama2q
