// ISA: none beyond the baseline. CPUs: all. This is the specification: every other ISA must give
// its results bit for bit.
//
// Requires: IEEE 754 float and double, round to nearest, denormals kept (base/float_env.h).
// Tricks: fma in float is computed in double, rounded to odd first, so that the second rounding is
// the only one that counts; no libm.
#include "isa/tables.h"
#include "kernels/table.h"

namespace llama2q {
namespace {

struct Scalar {
  static constexpr const char* kName = "scalar";
  static constexpr int kDenseTokens = 4;
  static constexpr int kStreamTokens = 2;
  static constexpr int kStreamTiles = 1;
  static constexpr int kPanelTokens = 4;
  static constexpr int kPanelBands = 1;
  static constexpr bool kRegisterSums = false;
  static constexpr bool kWideCodes = false;

  struct F {
    float lane[16];
  };
  struct I {
    int32_t lane[16];
  };
  struct Line {
    int8_t value[64];  // [row, column] of 16 x 4
  };
  using Grid = const int8_t*;
  using Dot = I;
  // One register of attention's tiles: a whole F, or as many of its lanes as a register holds.
  using Part = F;
  static constexpr int kPartLanes = 16;
  static constexpr int kTileRegisters = 8;  // accumulators that fit
  static constexpr int kQueryTile = 2;      // query rows side by side

  template <class Function>
  static F make(Function f) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
  }
  template <class Function>
  static I make_int(Function f) {
    I out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
  }

  static F broadcast(float x) {
    return make([=](int) { return x; });
  }
  static F load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  static F load_partial(const float* p, int64_t n) {
    return make([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static F load_f16(const uint16_t* p) {
    return make([=](int i) { return f16_to_f32(p[i]); });
  }
  static F load_f16_partial(const uint16_t* p, int64_t n) {
    return make([=](int i) { return i < n ? f16_to_f32(p[i]) : 0.0f; });
  }
  static F load_bf16(const uint16_t* p) {
    return make([=](int i) { return bf16_to_f32(p[i]); });
  }
  static F load_bf16_partial(const uint16_t* p, int64_t n) {
    return make([=](int i) { return i < n ? bf16_to_f32(p[i]) : 0.0f; });
  }
  static F load_int8(const int8_t* p) { return load_int8_partial(p, 16); }
  static F load_int8_partial(const int8_t* p, int64_t n) {
    return make([=](int i) { return i < n ? static_cast<float>(p[i]) : 0.0f; });
  }
  // An element of the KV cache as a float, n as above.
  static F widen_partial(const float* p, int64_t n) { return load_partial(p, n); }
  static F widen_partial(const uint16_t* p, int64_t n) { return load_f16_partial(p, n); }
  static F widen_partial(const int8_t* p, int64_t n) { return load_int8_partial(p, n); }
  static void store(float* p, F x) { store_partial(p, x, 16); }
  static void store_partial(float* p, F x, int64_t n) {
    for (int i = 0; i < 16 && i < n; ++i) p[i] = x.lane[i];
  }
  static void store_f16_partial(uint16_t* p, F x, int64_t n) {
    for (int i = 0; i < 16 && i < n; ++i) p[i] = f32_to_f16(x.lane[i]);
  }
  static void store_int8(int8_t* p, I x) { store_int8_partial(p, x, 16); }
  static void store_int8_partial(int8_t* p, I x, int64_t n) {
    for (int i = 0; i < 16 && i < n; ++i) p[i] = static_cast<int8_t>(x.lane[i]);
  }

  // Float of a half, for scales.
  static float widen_f16(uint16_t h) { return f16_to_f32(h); }
  static float first(F x) { return x.lane[0]; }

  static F add(F a, F b) {
    return make([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return make([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return make([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return make([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // As x86's: the second operand where the two are equal or unordered.
  static F max(F a, F b) {
    return make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // Lanes 0 0 2 2 ..., and 1 1 3 3 ...
  static F repeat_even(F x) {
    return make([&](int i) { return x.lane[i & ~1]; });
  }
  static F repeat_odd(F x) {
    return make([&](int i) { return x.lane[i | 1]; });
  }
  // Ties to even; |x| < 2^22.
  static float rint_scalar(float x) { return (x + 12582912.0f) - 12582912.0f; }
  static F rint(F x) {
    return make([&](int i) { return rint_scalar(x.lane[i]); });
  }
  static I to_int(F x) {
    return make_int([&](int i) { return static_cast<int32_t>(rint_scalar(x.lane[i])); });
  }
  static F to_float(I x) {
    return make([&](int i) { return static_cast<float>(x.lane[i]); });
  }

  // The product of two floats is exact in double. The sum is rounded to odd (if inexact, to the
  // neighbour with an odd last bit), after which rounding to float is correct.
  static float fma_scalar(float a, float b, float c) {
    const double product = static_cast<double>(a) * static_cast<double>(b);
    const double addend = static_cast<double>(c);
    const double sum = product + addend;
    const double back = sum - product;
    const double error = (product - (sum - back)) + (addend - back);
    uint64_t bits = __builtin_bit_cast(uint64_t, sum);
    if ((error > 0 || error < 0) && (bits & 1) == 0) {
      bits += (error > 0) == (sum > 0) ? 1 : ~uint64_t{0};
    }
    return static_cast<float>(__builtin_bit_cast(double, bits));
  }
  static F fma(F a, F b, F c) {
    return make([&](int i) { return fma_scalar(a.lane[i], b.lane[i], c.lane[i]); });
  }

  static Part part(float x) { return broadcast(x); }
  static Part load_part(const float* p) { return load(p); }
  static Part load_part(const uint16_t* p) { return load_f16(p); }
  static Part load_part(const int8_t* p) { return load_int8(p); }
  static void store_part(float* p, Part x) { store(p, x); }
  static Part mul_part(Part a, Part b) { return mul(a, b); }
  static Part fma_part(Part a, Part b, Part c) { return fma(a, b, c); }

  // Lanes i and i + 8, then 4, 2, 1.
  static float tree16(F x) {
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];
    }
    return x.lane[0];
  }
  // The first two steps of tree16 for four vectors, packed: lane 4 * i + j is lane j of vector i.
  static F fold_lanes(const Part* x) {
    return make([&](int i) {
      const float* lane = x[i / 4].lane + i % 4;
      return (lane[0] + lane[8]) + (lane[4] + lane[12]);
    });
  }
  // The last two steps for sixteen vectors: lane i of the result is tree16 of vector i.
  static F finish_trees(const F* x) {
    return make([&](int i) {
      const float* lane = x[i / 4].lane + i % 4 * 4;
      return (lane[0] + lane[2]) + (lane[1] + lane[3]);
    });
  }
  static float max_lanes(F x) {
    float largest = x.lane[0];
    for (int i = 1; i < 16; ++i) largest = largest > x.lane[i] ? largest : x.lane[i];
    return largest;
  }

  // p * 2^n for integral n in [-126, 126].
  static F scale_by_power_of_two(F p, F n) {
    return make([&](int i) {
      const uint32_t exponent = float_bits(n.lane[i] + (12582912.0f + 127.0f));
      return p.lane[i] * bits_float(exponent << 23);
    });
  }
  // value where x > bound or x is NaN, else +0.
  static F zero_unless_greater(F x, F bound, F value) {
    return make([&](int i) { return x.lane[i] <= bound.lane[i] ? 0.0f : value.lane[i]; });
  }
  // index + step where x > bound.
  static I add_if_greater(I index, F x, F bound, int32_t step) {
    return make_int([&](int i) { return index.lane[i] + (x.lane[i] > bound.lane[i] ? step : 0); });
  }
  // table[index], f32 [16], indices 0 to 15.
  static F pick(const float* table, I index) {
    return make([&](int i) { return table[index.lane[i]]; });
  }
  static F fill_absent(F x, int64_t n, float filler) {
    return make([&](int i) { return i < n ? x.lane[i] : filler; });
  }

  static I zero_int() {
    return make_int([](int) { return 0; });
  }
  static I add_int(I a, I b) {
    return make_int([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static I or_int(I a, I b) {
    return make_int([&](int i) { return a.lane[i] | b.lane[i]; });
  }
  static I max_int(I a, I b) {
    return make_int([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static I magnitude_bits(F x) {
    return make_int(
        [&](int i) { return static_cast<int32_t>(float_bits(x.lane[i]) & 0x7fffffffu); });
  }
  // Nonzero where x is NaN or +inf.
  static I nan_or_plus_inf(F x) {
    return make_int([&](int i) { return x.lane[i] < __builtin_inff() ? 0 : 1; });
  }
  static uint32_t max_lanes(I x) {
    int32_t largest = x.lane[0];
    for (int i = 1; i < 16; ++i) largest = largest > x.lane[i] ? largest : x.lane[i];
    return static_cast<uint32_t>(largest);
  }
  static int32_t sum_lanes(I x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x.lane[i];
    return sum;
  }

  static Grid load_grid(const int8_t* grid) { return grid; }
  static Line int8_line(const uint8_t* p) {
    Line line;
    __builtin_memcpy(line.value, p, 64);
    return line;
  }
  static void int4_lines(const uint8_t* p, Grid grid, Line& low, Line& high) {
    for (int i = 0; i < 64; ++i) {
      low.value[i] = grid[p[i] & 15];
      high.value[i] = grid[p[i] >> 4];
    }
  }
  // Signed products need no correction.
  static Dot start_dot(int32_t) { return zero_int(); }
  static I finish_dot(Dot dot) { return dot; }
  static void dot(Dot& acc, const Line& line, const int8_t* x) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 4; ++i) acc.lane[r] += line.value[4 * r + i] * x[i];
    }
  }
  static void dot(Dot& acc, const Line& low, const Line& high, const int8_t* x,
                  const int8_t* next) {
    dot(acc, low, x);
    dot(acc, high, next);
  }
  static void prefetch(const void*) {}
  static void prefetch_far(const void*) {}

  struct Panel {
    static constexpr int64_t kColumns = 4, kUnitCodes = 4, kRunLines = 0;
    using Code = int8_t;
    using Weights = Line;
    using Unit = const int8_t*;
    using Dot = I;

    static Grid grid(const MatrixView& w) { return w.grid; }
    static const Code* codes(const ActivationView& x) { return x.codes; }
    static uint8_t* store(const Line& line, uint8_t* out, int64_t stride) {
      __builtin_memcpy(out, line.value, 64);
      return out + stride;
    }
    static Weights load(const uint8_t* p) { return int8_line(p); }
    static Unit broadcast(const Code* p) { return p; }
    static Dot start(int32_t) { return zero_int(); }
    static void multiply(Dot& dot, const Weights& w, Unit a) { Scalar::dot(dot, w, a); }
    static const I& finish(const Dot& dot) { return dot; }
  };

  // One product at a time.
  struct Peak {
    static constexpr int kIdioms = 1, kSums = 8;
    template <int kIdiom>
    static constexpr int kProducts = 1;
    using Sum = int32_t;
    using Weights = int32_t;
    using Activations = int32_t;
    static Weights weights(const int8_t* p) { return *p; }
    static Activations activations(const int8_t* p) { return *p; }
    static void keep(int32_t& x) { __asm__ volatile("" : "+r"(x)); }
    template <int kIdiom>
    static void dot(Sum& sum, Weights w, Activations a) {
      sum += w * a;
    }
  };
};

}  // namespace

const KernelTable kScalarKernels = kKernelTable<Scalar>;

}  // namespace llama2q
