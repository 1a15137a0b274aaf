// Half-precision and bfloat16 bits to float and back, in integer arithmetic: the same on any
// machine.
//
// Everything has internal linkage (static): ISA units include this file, and a weak copy compiled
// with AVX-512 must never be the one that the linker keeps for the baseline.
#pragma once

#include <stdint.h>

namespace llama2q {

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float bf16_to_f32(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  const uint32_t mantissa = h & 1023u;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24 is exact in float.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return bits_float(sign | float_bits(magnitude));
}

// Rounds to nearest, ties to even; overflow gives infinity.
static inline uint16_t f32_to_f16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude >= 0x38800000u) {                                              // >= 2^-14
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  // Below 2^-14 an f16 step is 2^-24: adding 0.5f aligns the step with float's last bit.
  const uint32_t step = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  return static_cast<uint16_t>(sign | step);
}

// A scale: nearest-even, but below 2^-14 up in magnitude, so that no value of its group can fall
// outside the codes by the coarse subnormal step. Overflow gives infinity: the caller checks.
static inline uint16_t f32_to_f16_scale(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude == 0 || magnitude >= 0x38800000u) return f32_to_f16(x);
  const float steps = bits_float(magnitude) * 0x1p24f;  // exact, below 1024
  uint32_t whole = static_cast<uint32_t>(steps);
  if (static_cast<float>(whole) < steps) ++whole;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | whole);
}

}  // namespace llama2q
