// ISA: Armv8.2-A with the dot product and the int8 matrix product. CPUs: Arm since Neoverse V1 and
// Cortex-A510, A710, X2 (2021), Apple since A15 and M2.
//
// Requires: Advanced SIMD and its extensions asimddp and i8mm.
// Tricks: smmla multiplies two rows by two tokens over eight columns, twice the products of sdot.
// Its rows come from two lines of four columns by one 32-bit zip, done once when a panel is
// unpacked. One token has no partner: it takes sdot, by lane.
#include "isa/neon_lanes.h"
#include "isa/tables.h"

namespace llama2q {
namespace {

struct NeonI8mm : NeonLanes {
  static constexpr const char* kName = "neon_i8mm";
  static constexpr int kStreamTokens = 1;
  static constexpr int kStreamTiles = 1;

  struct Panel {
    static constexpr int64_t kColumns = 8;
    using Code = int8_t;
    struct Weights {
      int8x16_t q[8];  // register i: the rows 2 * i and 2 * i + 1, 8 columns of each
    };
    using Dot = I;

    static Grid grid(const MatrixView& w) { return load_grid(w.grid); }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    // The columns 0 to 3 and 4 to 7 of 16 rows.
    static uint8_t* store(const Line& low, const Line& high, uint8_t* out, int64_t stride) {
      for (int i = 0; i < 4; ++i) {
        const int32x4_t a = vreinterpretq_s32_s8(low.q[i]), b = vreinterpretq_s32_s8(high.q[i]);
        vst1q_s32(reinterpret_cast<int32_t*>(out) + 8 * i, vzip1q_s32(a, b));
        vst1q_s32(reinterpret_cast<int32_t*>(out) + 8 * i + 4, vzip2q_s32(a, b));
      }
      return out + stride;
    }
    static I finish(const Dot& dot) { return dot; }

    // The units of two tokens, or of the last one.
    template <bool kTwo>
    static int8x16_t units(const Code* x) {
      if constexpr (kTwo) return vld1q_s8(x);
      return vcombine_s8(vld1_s8(x), vdup_n_s8(0));
    }
    template <int kBands, int kTokens>
    [[gnu::always_inline]] static void group_dots(const uint8_t*& line, int64_t n_lines,
                                                  const Code*& codes,
                                                  Dot (&dots)[kTokens][kBands]) {
      static_assert(kBands == 1);
      constexpr int kPairs = (kTokens + 1) / 2;
      // Lanes: row 2 * i by both tokens, then row 2 * i + 1.
      int32x4_t sums[kPairs][8];
      for (int p = 0; p < kPairs; ++p) {
        for (int i = 0; i < 8; ++i) sums[p][i] = vdupq_n_s32(0);
      }
      do {
        int8x16_t a[kPairs];
        for (int p = 0; p < kPairs - 1; ++p) a[p] = units<true>(codes + 16 * p);
        a[kPairs - 1] = units < kTokens % 2 == 0 > (codes + 16 * (kPairs - 1));
        for (int i = 0; i < 8; i += 2) {
          const int8_t* rows = reinterpret_cast<const int8_t*>(line) + 16 * i;
          const int8x16_t w0 = vld1q_s8(rows), w1 = vld1q_s8(rows + 16);
          for (int p = 0; p < kPairs; ++p) sums[p][i] = vmmlaq_s32(sums[p][i], w0, a[p]);
          for (int p = 0; p < kPairs; ++p) sums[p][i + 1] = vmmlaq_s32(sums[p][i + 1], w1, a[p]);
          // Or the compiler loads all rows first and runs out of registers.
          __asm__ volatile("" ::: "memory");
        }
        line += sizeof(Weights);
        codes += kTokens * kColumns;
      } while (--n_lines > 0);
      for (int t = 0; t < kTokens; ++t) {
        for (int i = 0; i < 4; ++i) {
          const int32x4_t low = sums[t / 2][2 * i], high = sums[t / 2][2 * i + 1];
          dots[t][0].q[i] = t % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
        }
      }
    }
  };

  // One smmla is 32 products.
  struct Peak {
    static constexpr int kIdioms = 1, kSums = 16;
    template <int kIdiom>
    static constexpr int kProducts = 32;
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
      sum = vmmlaq_s32(sum, w, a);
    }
  };
};

}  // namespace

const KernelTable kNeonI8mmKernels = kKernelTable<NeonI8mm>;

}  // namespace llama2q
