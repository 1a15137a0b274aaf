// ISA: AVX2 + AVX-VNNI. CPUs: Intel since Alder Lake (2021), AMD since Zen 5.
//
// Requires: what avx2.cpp does, and AVX-VNNI. Tricks: vpdpbusd multiplies unsigned by signed bytes:
// the weights go in as value + 128, and the sum starts at -128 * (sum of the activations), which
// makes it exact.
#include "isa/avx2_lanes.h"
#include "isa/tables.h"

// AVX-VNNI's encoding; LLAMA2Q_AVXVNNI_AS_AVX512 tests the same text on a CPU with AVX-512 VNNI.
#if defined(LLAMA2Q_AVXVNNI_AS_AVX512)
#define LLAMA2Q_VPDPBUSD "vpdpbusd"
#else
#define LLAMA2Q_VPDPBUSD "%{vex%} vpdpbusd"
#endif

namespace llama2q {
namespace {

struct AvxVnni : Avx2Lanes {
  static constexpr const char* kName = "avxvnni";
  static constexpr int kDenseTokens = 4;
  static constexpr int kStreamTokens = 2;
  static constexpr int kStreamTiles = 2;
  static constexpr int kPanelTokens = 6;
  static constexpr int kPanelBands = 1;
  static constexpr bool kRegisterSums = false;  // the dots take 12 of the 16
  static constexpr bool kWideCodes = false;

  // Two sums, so that a single token's chain of products is half as long.
  struct Dot {
    I even, odd;
  };

  // Assembly, since compilers know the instruction by different names for its two encodings.
  static void add_products(__m256i& sum, __m256i w, __m256i a) {
    __asm__(LLAMA2Q_VPDPBUSD " %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
  }
  static void add_line(I& sum, const Line& line, const int8_t* x) {
    const __m256i a = four_bytes(x);
    add_products(sum.low, line.low, a);
    add_products(sum.high, line.high, a);
  }

  static __m256i unsigned_bytes(__m256i x) {
    return _mm256_xor_si256(x, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  static Grid load_grid(const int8_t* grid) { return unsigned_bytes(Avx2Lanes::load_grid(grid)); }
  static Line int8_line(const uint8_t* p) {
    const Line line = Avx2Lanes::int8_line(p);
    return {unsigned_bytes(line.low), unsigned_bytes(line.high)};
  }
  static I start_sum(int32_t correction) {
    const __m256i sum = _mm256_set1_epi32(correction);
    return {sum, sum};
  }
  static Dot start_dot(int32_t correction) { return {start_sum(correction), zero_int()}; }
  static I finish_dot(const Dot& dot) { return add_int(dot.even, dot.odd); }
  static void dot(Dot& acc, const Line& line, const int8_t* x) { add_line(acc.even, line, x); }
  static void dot(Dot& acc, const Line& low, const Line& high, const int8_t* x,
                  const int8_t* next) {
    add_line(acc.even, low, x);
    add_line(acc.odd, high, next);
  }

  struct Panel {
    static constexpr int64_t kColumns = 4, kUnitCodes = 4, kRunLines = 0;
    using Code = int8_t;
    using Weights = Pair;
    using Unit = __m256i;
    using Dot = I;

    static Grid grid(const MatrixView& w) { return AvxVnni::load_grid(w.grid); }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    static uint8_t* store(const Line& line, uint8_t* out, int64_t stride) {
      store_pair(out, line);
      return out + stride;
    }
    static Weights load(const uint8_t* p) { return load_pair(p); }
    static Unit broadcast(const Code* p) { return four_bytes(p); }
    static Dot start(int32_t correction) { return start_sum(correction); }
    static void multiply(Dot& dot, Weights w, Unit a) {
      add_products(dot.low, w.low, a);
      add_products(dot.high, w.high, a);
    }
    static I finish(Dot dot) { return dot; }
  };

  // One vpdpbusd is 32 products.
  struct Peak {
    static constexpr int kIdioms = 1, kSums = 12;
    template <int kIdiom>
    static constexpr int kProducts = 32;
    using Sum = __m256i;
    using Weights = __m256i;
    using Activations = __m256i;
    static Weights weights(const int8_t* p) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static Activations activations(const int8_t* p) { return four_bytes(p); }
    static void keep(__m256i& x) { __asm__ volatile("" : "+x"(x)); }
    template <int kIdiom>
    static void dot(Sum& sum, Weights w, Activations a) {
      add_products(sum, w, a);
    }
  };
};

}  // namespace

const KernelTable kAvxVnniKernels = kKernelTable<AvxVnni>;

}  // namespace llama2q
