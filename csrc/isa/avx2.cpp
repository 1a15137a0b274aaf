// ISA: AVX2 + FMA + F16C. CPUs: Intel since Haswell (2013), AMD since Excavator and Zen.
//
// Requires: AVX2, FMA, F16C, and an operating system that saves the YMM registers (XCR0).
// Tricks: 16 lanes are two registers. A signed byte product is vpmaddubsw of |a| and sign(w, a):
// at most 2 * 127 * 127 = 32258, so the 16-bit sums never saturate (code -128 is refused).
#include "isa/avx2_lanes.h"
#include "isa/tables.h"

namespace llama2q {
namespace {

struct Avx2 : Avx2Lanes {
  static constexpr const char* kName = "avx2";
  static constexpr int kDenseTokens = 4;
  static constexpr int kStreamTokens = 4;
  static constexpr int kStreamTiles = 1;
  static constexpr int kPanelTokens = 6;
  static constexpr int kPanelBands = 1;
  static constexpr bool kRegisterSums = false;  // the dots take 12 of the 16
  static constexpr bool kWideCodes = true;

  using Dot = I;

  // Signed products need no correction.
  static Dot start_dot(int32_t) { return zero_int(); }
  static I finish_dot(Dot dot) { return dot; }
  static void dot(Dot& acc, const Line& line, const int8_t* x) {
    const __m256i a = four_bytes(x);
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
