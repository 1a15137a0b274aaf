// ISA: Armv8.2-A with the dot product. CPUs: Arm since Cortex-A75 and Neoverse N1 (2018), Apple
// since A13 and M1.
//
// Requires: Advanced SIMD and its dot product extension (asimddp).
// Tricks: 16 lanes are four registers, the rows of a line. sdot multiplies signed by signed bytes,
// by lane: one register of activations serves four tokens, or four lines of one token.
#include "isa/neon_lanes.h"
#include "isa/tables.h"

namespace llama2q {
namespace {

struct Neon : NeonLanes {
  static constexpr const char* kName = "neon";
  static constexpr int kStreamTokens = 4;
  static constexpr int kStreamTiles = 1;

  struct Panel {
    static constexpr int64_t kColumns = 4;
    using Code = int8_t;
    using Weights = Line;
    using Dot = I;

    static Grid grid(const MatrixView& w) { return load_grid(w.grid); }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    static uint8_t* store(const Line& line, uint8_t* out, int64_t stride) {
      store_line(out, line);
      return out + stride;
    }
    static I finish(const Dot& dot) { return dot; }

    // The tokens from t on; a[t / 4] holds the codes of four.
    template <int t, int kTokens>
    [[gnu::always_inline]] static void multiply(const Line& w, const int8x16_t (&a)[2],
                                                int32x4_t (&sums)[kTokens][4]) {
      if constexpr (t < kTokens) {
        for (int i = 0; i < 4; ++i) {
          sums[t][i] = vdotq_laneq_s32(sums[t][i], w.q[i], a[t / 4], t % 4);
        }
        multiply<t + 1>(w, a, sums);
      }
    }
    // Up to four tokens' codes of a line.
    template <int kLanes>
    static int8x16_t units(const Code* x) {
      if constexpr (kLanes == 0) return vdupq_n_s8(0);
      if constexpr (kLanes == 4) return vld1q_s8(x);
      const int8x8_t first = kLanes == 1 ? four_bytes(x) : vld1_s8(x);
      return vcombine_s8(first, kLanes == 3 ? four_bytes(x + 8) : vdup_n_s8(0));
    }
    template <int kBands, int kTokens>
    [[gnu::always_inline]] static void group_dots(const uint8_t*& line, int64_t n_lines,
                                                  const Code*& codes,
                                                  Dot (&dots)[kTokens][kBands]) {
      static_assert(kBands == 1 && kTokens <= 8);
      constexpr int kLow = kTokens < 4 ? kTokens : 4, kHigh = kTokens - kLow;
      int32x4_t sums[kTokens][4];
      for (int t = 0; t < kTokens; ++t) {
        for (int i = 0; i < 4; ++i) sums[t][i] = vdupq_n_s32(0);
      }
      do {
        const int8x16_t a[2] = {units<kLow>(codes), units<kHigh>(codes + 16)};
        multiply<0>(int8_line(line), a, sums);
        line += kLineBytes;
        codes += kTokens * kColumns;
      } while (--n_lines > 0);
      for (int t = 0; t < kTokens; ++t) {
        dots[t][0] = make_int([&](int i) { return sums[t][i]; });
      }
    }
  };

  // One sdot is 16 products.
  struct Peak {
    static constexpr int kIdioms = 1, kSums = 24;
    template <int kIdiom>
    static constexpr int kProducts = 16;
    using Sum = int32x4_t;
    using Weights = int8x16_t;
    using Activations = int8x16_t;
    static Weights weights(const int8_t* p) { return vld1q_s8(p); }
    static Activations activations(const int8_t* p) { return vld1q_s8(p); }
    template <class T>
    static void keep(T& x) {
      __asm__ volatile("" : "+w"(x));
    }
    template <int kIdiom>
    static void dot(Sum& sum, Weights w, Activations a) {
      sum = vdotq_laneq_s32(sum, w, a, 0);
    }
  };
};

}  // namespace

const KernelTable kNeonKernels = kKernelTable<Neon>;

}  // namespace llama2q
