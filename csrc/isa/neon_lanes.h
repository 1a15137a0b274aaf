// What the Arm instruction sets share: 16 lanes in four registers, lines of weights, the stream of
// one token's dots.
//
// Included by one ISA unit each, whose flags it is compiled with; hence the anonymous namespace.
#pragma once

#include <arm_neon.h>

#include "kernels/table.h"

namespace llama2q {
namespace {

struct NeonLanes {
  static constexpr int kDenseTokens = 4;
  static constexpr int kPanelTokens = 6;
  static constexpr int kPanelBands = 1;
  static constexpr bool kRegisterSums = false;  // the dots take 24 of the 32
  static constexpr bool kWideCodes = false;

  struct F {
    float32x4_t q[4];
  };
  struct I {
    int32x4_t q[4];
  };
  struct Line {
    int8x16_t q[4];  // register i: 4 columns of each of the rows 4 * i to 4 * i + 3
  };
  using Grid = int8x16_t;
  using Dot = I;
  // Two registers, which one load instruction fills.
  struct Part {
    float32x4_t q[2];
  };
  static constexpr int kPartLanes = 8;
  static constexpr int kTileRegisters = 12;
  static constexpr int kQueryTile = 3;

  template <class Function>
  [[gnu::always_inline]] static F make(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  template <class Function>
  [[gnu::always_inline]] static I make_int(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  // Copies n < 16 elements into a zeroed buffer of 16.
  template <class T>
  struct Partial {
    alignas(16) T data[16] = {};
    Partial(const T* p, int64_t n) {
      for (int64_t i = 0; i < n; ++i) data[i] = p[i];
    }
  };
  template <class T>
  static void copy(T* to, const T* from, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }

  static F broadcast(float x) {
    return make([=](int) { return vdupq_n_f32(x); });
  }
  static F load(const float* p) {
    return make([=](int i) { return vld1q_f32(p + 4 * i); });
  }
  static F load_partial(const float* p, int64_t n) {
    return n >= 16 ? load(p) : load(Partial<float>(p, n).data);
  }
  static float16x8_t halves(const uint16_t* p) { return vreinterpretq_f16_u16(vld1q_u16(p)); }
  static F widen_halves(float16x8_t low, float16x8_t high) {
    return {{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
             vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)}};
  }
  static F load_f16(const uint16_t* p) { return widen_halves(halves(p), halves(p + 8)); }
  static F load_f16_partial(const uint16_t* p, int64_t n) {
    return n >= 16 ? load_f16(p) : load_f16(Partial<uint16_t>(p, n).data);
  }
  // The upper half of a float: one zip with zeros.
  static F load_bf16(const uint16_t* p) {
    const uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8), zero = vdupq_n_u16(0);
    return {{vreinterpretq_f32_u16(vzip1q_u16(zero, low)),
             vreinterpretq_f32_u16(vzip2q_u16(zero, low)),
             vreinterpretq_f32_u16(vzip1q_u16(zero, high)),
             vreinterpretq_f32_u16(vzip2q_u16(zero, high))}};
  }
  static F load_bf16_partial(const uint16_t* p, int64_t n) {
    return n >= 16 ? load_bf16(p) : load_bf16(Partial<uint16_t>(p, n).data);
  }
  static Part widen_bytes(int8x8_t bytes) {
    const int16x8_t wide = vmovl_s8(bytes);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))}};
  }
  static F load_int8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const Part low = widen_bytes(vget_low_s8(bytes)), high = widen_bytes(vget_high_s8(bytes));
    return {{low.q[0], low.q[1], high.q[0], high.q[1]}};
  }
  static F load_int8_partial(const int8_t* p, int64_t n) {
    return n >= 16 ? load_int8(p) : load_int8(Partial<int8_t>(p, n).data);
  }
  static F widen_partial(const float* p, int64_t n) { return load_partial(p, n); }
  static F widen_partial(const uint16_t* p, int64_t n) { return load_f16_partial(p, n); }
  static F widen_partial(const int8_t* p, int64_t n) { return load_int8_partial(p, n); }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.q[i]);
  }
  static void store_partial(float* p, F x, int64_t n) {
    if (n >= 16) return store(p, x);
    alignas(16) float data[16];
    store(data, x);
    copy(p, data, n);
  }
  static void store_f16_partial(uint16_t* p, F x, int64_t n) {
    alignas(16) uint16_t data[16];
    uint16_t* out = n >= 16 ? p : data;
    for (int i = 0; i < 4; ++i) vst1_u16(out + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.q[i])));
    if (n < 16) copy(p, data, n);
  }
  static void store_int8(int8_t* p, I x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.q[0]), vmovn_s32(x.q[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.q[2]), vmovn_s32(x.q[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  static void store_int8_partial(int8_t* p, I x, int64_t n) {
    if (n >= 16) return store_int8(p, x);
    alignas(16) int8_t data[16];
    store_int8(data, x);
    copy(p, data, n);
  }

  static float widen_f16(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
  }
  static float first(F x) { return vgetq_lane_f32(x.q[0], 0); }

  static F add(F a, F b) {
    return make([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
  }
  static F sub(F a, F b) {
    return make([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
  }
  static F mul(F a, F b) {
    return make([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
  }
  static F div(F a, F b) {
    return make([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
  }
  // Not fmax and fmin, which treat zeros and NaN otherwise than x86's.
  static float32x4_t larger(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
  }
  static F max(F a, F b) {
    return make([&](int i) { return larger(a.q[i], b.q[i]); });
  }
  static F min(F a, F b) {
    return make([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
  }
  static F fma(F a, F b, F c) {
    return make([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
  }
  static float fma_scalar(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static F repeat_even(F x) {
    return make([&](int i) { return vtrn1q_f32(x.q[i], x.q[i]); });
  }
  static F repeat_odd(F x) {
    return make([&](int i) { return vtrn2q_f32(x.q[i], x.q[i]); });
  }
  static F rint(F x) {
    return make([&](int i) { return vrndnq_f32(x.q[i]); });
  }
  static I to_int(F x) {
    return make_int([&](int i) { return vcvtnq_s32_f32(x.q[i]); });
  }
  static F to_float(I x) {
    return make([&](int i) { return vcvtq_f32_s32(x.q[i]); });
  }

  static Part part(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
  static Part load_part(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4)}}; }
  static Part load_part(const uint16_t* p) {
    const float16x8_t x = halves(p);
    return {{vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)}};
  }
  static Part load_part(const int8_t* p) { return widen_bytes(vld1_s8(p)); }
  static void store_part(float* p, Part x) {
    vst1q_f32(p, x.q[0]);
    vst1q_f32(p + 4, x.q[1]);
  }
  static Part mul_part(Part a, Part b) {
    return {{vmulq_f32(a.q[0], b.q[0]), vmulq_f32(a.q[1], b.q[1])}};
  }
  static Part fma_part(Part a, Part b, Part c) {
    return {{vfmaq_f32(c.q[0], a.q[0], b.q[0]), vfmaq_f32(c.q[1], a.q[1], b.q[1])}};
  }

  static float tree16(F x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.q[0], x.q[2]), vaddq_f32(x.q[1], x.q[3]));
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
  }
  // tree16's order, while the lanes are packed. Parts 2 * i and 2 * i + 1 are vector i.
  static F fold_lanes(const Part* x) {
    return make([&](int i) {
      const Part& low = x[2 * i];
      const Part& high = x[2 * i + 1];
      return vaddq_f32(vaddq_f32(low.q[0], high.q[0]), vaddq_f32(low.q[1], high.q[1]));
    });
  }
  static F finish_trees(const F* x) {
    const auto two = [](float32x4_t a, float32x4_t b) {
      const float64x2_t c = vreinterpretq_f64_f32(a), d = vreinterpretq_f64_f32(b);
      return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(c, d)),
                       vreinterpretq_f32_f64(vzip2q_f64(c, d)));
    };
    return make(
        [&](int i) { return vpaddq_f32(two(x[i].q[0], x[i].q[1]), two(x[i].q[2], x[i].q[3])); });
  }
  static float max_lanes(F x) {
    const float32x4_t four = larger(larger(x.q[0], x.q[1]), larger(x.q[2], x.q[3]));
    const float32x4_t two = larger(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger(two, vextq_f32(two, two, 1)), 0);
  }

  static F scale_by_power_of_two(F p, F n) {
    return make([&](int i) {
      const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n.q[i]), vdupq_n_s32(127));
      return vmulq_f32(p.q[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    });
  }
  static F zero_unless_greater(F x, F bound, F value) {
    return make([&](int i) {
      const uint32x4_t bits = vreinterpretq_u32_f32(value.q[i]);
      return vreinterpretq_f32_u32(vbicq_u32(bits, vcleq_f32(x.q[i], bound.q[i])));
    });
  }
  static I add_if_greater(I index, F x, F bound, int32_t step) {
    return make_int([&](int i) {
      const int32x4_t greater = vreinterpretq_s32_u32(vcgtq_f32(x.q[i], bound.q[i]));
      return vaddq_s32(index.q[i], vandq_s32(greater, vdupq_n_s32(step)));
    });
  }
  // A table of 64 bytes, of which each index takes four.
  static F pick(const float* table, I index) {
    const uint8x16x4_t bytes = {
        vreinterpretq_u8_f32(vld1q_f32(table)), vreinterpretq_u8_f32(vld1q_f32(table + 4)),
        vreinterpretq_u8_f32(vld1q_f32(table + 8)), vreinterpretq_u8_f32(vld1q_f32(table + 12))};
    return make([&](int i) {
      const int32x4_t first =
          vmlaq_s32(vdupq_n_s32(0x03020100), index.q[i], vdupq_n_s32(0x04040404));
      return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_s32(first)));
    });
  }
  static F fill_absent(F x, int64_t n, float filler) {
    alignas(16) float data[16];
    store(data, x);
    for (int64_t i = n; i < 16; ++i) data[i] = filler;
    return load(data);
  }

  static I zero_int() {
    return make_int([](int) { return vdupq_n_s32(0); });
  }
  static I add_int(I a, I b) {
    return make_int([&](int i) { return vaddq_s32(a.q[i], b.q[i]); });
  }
  static I or_int(I a, I b) {
    return make_int([&](int i) { return vorrq_s32(a.q[i], b.q[i]); });
  }
  static I max_int(I a, I b) {
    return make_int([&](int i) { return vmaxq_s32(a.q[i], b.q[i]); });
  }
  static I magnitude_bits(F x) {
    const int32x4_t mask = vdupq_n_s32(0x7fffffff);
    return make_int([&](int i) { return vandq_s32(vreinterpretq_s32_f32(x.q[i]), mask); });
  }
  static I nan_or_plus_inf(F x) {
    const float32x4_t inf = vdupq_n_f32(__builtin_inff());
    const int32x4_t one = vdupq_n_s32(1);
    return make_int(
        [&](int i) { return vbicq_s32(one, vreinterpretq_s32_u32(vcltq_f32(x.q[i], inf))); });
  }
  static uint32_t max_lanes(I x) {
    const int32x4_t four = vmaxq_s32(vmaxq_s32(x.q[0], x.q[1]), vmaxq_s32(x.q[2], x.q[3]));
    return static_cast<uint32_t>(vmaxvq_s32(four));
  }
  static int32_t sum_lanes(I x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.q[0], x.q[1]), vaddq_s32(x.q[2], x.q[3])));
  }

  static Grid load_grid(const int8_t* grid) { return vld1q_s8(grid); }
  static Line int8_line(const uint8_t* p) {
    const int8_t* bytes = reinterpret_cast<const int8_t*>(p);
    return {{vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)}};
  }
  static void int4_lines(const uint8_t* p, Grid grid, Line& low, Line& high) {
    const uint8x16_t mask = vdupq_n_u8(15);
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t packed = vld1q_u8(p + 16 * i);
      low.q[i] = vqtbl1q_s8(grid, vandq_u8(packed, mask));
      high.q[i] = vqtbl1q_s8(grid, vshrq_n_u8(packed, 4));
    }
  }
  // Signed products need no correction.
  static Dot start_dot(int32_t) { return zero_int(); }
  static I finish_dot(Dot dot) { return dot; }
  // Four bytes in the first lane: a plain load, where a broadcast takes a vector unit, too.
  static int8x8_t four_bytes(const int8_t* x) {
    int8x8_t four;
    __asm__("ldr %s0, %1" : "=w"(four) : "m"(*reinterpret_cast<const int8_t(*)[4]>(x)));
    return four;
  }
  static void dot(Dot& acc, const Line& line, const int8_t* x) {
    const int8x8_t a = four_bytes(x);
    for (int i = 0; i < 4; ++i) acc.q[i] = vdotq_lane_s32(acc.q[i], line.q[i], a, 0);
  }
  static void dot(Dot& acc, const Line& low, const Line& high, const int8_t* x,
                  const int8_t* next) {
    if (next != x + 4) {  // known when it is compiled: the tokens of a stream stand side by side
      dot(acc, low, x);
      return dot(acc, high, next);
    }
    const int8x8_t a = vld1_s8(x);
    for (int i = 0; i < 4; ++i) acc.q[i] = vdotq_lane_s32(acc.q[i], low.q[i], a, 0);
    for (int i = 0; i < 4; ++i) acc.q[i] = vdotq_lane_s32(acc.q[i], high.q[i], a, 1);
  }
  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
  // Into L2 alone.
  static void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

  static void store_line(uint8_t* p, const Line& x) {
    for (int i = 0; i < 4; ++i) vst1q_s8(reinterpret_cast<int8_t*>(p) + 16 * i, x.q[i]);
  }
};

}  // namespace
}  // namespace llama2q
