// From the codes of a step of a band (cuda/layout.h) to the exact dots of its groups: each kind of
// codes as factors of an mma, what its accumulators start from, and what they mean.
#pragma once

#include "cuda/gemv_shared.h"
#include "cuda/intrinsics.h"
#include "cuda/layout.h"

namespace llama2q::cuda {

// The weights of a step of a band: 32 columns each.
struct StepWeights {
  Int8A half[2];
};

template <Codes kCodes>
struct Products;

// value + 128 as an unsigned factor; starts take 128 times the sum of the activations away.
template <>
struct Products<Codes::kLookup> {
  static constexpr int kPieces = 1;  // elements of uint4 of a step and lane
  static constexpr float kBias = 12582912.0f;
  CodeTable table;

  // Eight codes to columns 8 t .. 8 t + 3 and 8 t + 4 .. 8 t + 7. A selector's nibble of 8 or more
  // replicates the sign of a magnitude: 0. So one of the two bytes is 0, and none borrows.
  __device__ __forceinline__ void look_up(uint32_t codes, uint32_t& low, uint32_t& high) const {
    const uint32_t flipped = codes ^ 0x88888888u;
    low = permute_bytes(table.positive[0], table.positive[1], flipped) + 0x80808080u -
          permute_bytes(table.negative[0], table.negative[1], codes);
    high = permute_bytes(table.positive[0], table.positive[1], flipped >> 16) + 0x80808080u -
           permute_bytes(table.negative[0], table.negative[1], codes >> 16);
  }

  __device__ __forceinline__ void unpack(const uint4 (&pieces)[kPieces], StepWeights& a) const {
    look_up(pieces[0].x, a.half[0].r[0], a.half[0].r[2]);
    look_up(pieces[0].y, a.half[0].r[1], a.half[0].r[3]);
    look_up(pieces[0].z, a.half[1].r[0], a.half[1].r[2]);
    look_up(pieces[0].w, a.half[1].r[1], a.half[1].r[3]);
  }

  // starts: s0, s1, s0, s1 of the activations' tokens.
  __device__ __forceinline__ static IntC start(const int32_t* starts) {
    const int4 s = *reinterpret_cast<const int4*>(starts);
    return {{s.x, s.y, s.z, s.w}};
  }

  __device__ __forceinline__ static void multiply(IntC& c, const Int8A& a, const Int8B& b) {
    mma_us8(c, a, b);
  }
};

// 16 times the value: a nibble in two's complement, in the upper half of a byte. The sums are 16
// times the dot, and the bias is such that a sixteenth of them is read.
template <>
struct Products<Codes::kUniform> {
  static constexpr int kPieces = 1;
  static constexpr float kBias = 786432.0f;  // 1.5 * 2^19
  static constexpr int32_t kBiasBits = 0x49400000;
  CodeTable table;  // unused

  __device__ __forceinline__ static void shift(uint32_t codes, uint32_t& low, uint32_t& high) {
    low = (codes << 4) & 0xf0f0f0f0u;
    high = codes & 0xf0f0f0f0u;
  }

  __device__ __forceinline__ void unpack(const uint4 (&pieces)[kPieces], StepWeights& a) const {
    shift(pieces[0].x, a.half[0].r[0], a.half[0].r[2]);
    shift(pieces[0].y, a.half[0].r[1], a.half[0].r[3]);
    shift(pieces[0].z, a.half[1].r[0], a.half[1].r[2]);
    shift(pieces[0].w, a.half[1].r[1], a.half[1].r[3]);
  }

  __device__ __forceinline__ static IntC start(const int32_t*) {
    return {{kBiasBits, kBiasBits, kBiasBits, kBiasBits}};
  }

  __device__ __forceinline__ static void multiply(IntC& c, const Int8A& a, const Int8B& b) {
    mma_ss8(c, a, b);
  }
};

template <>
struct Products<Codes::kInt8> {
  static constexpr int kPieces = 2;
  static constexpr float kBias = 12582912.0f;
  CodeTable table;  // unused

  __device__ __forceinline__ void unpack(const uint4 (&pieces)[kPieces], StepWeights& a) const {
    for (int half = 0; half < 2; ++half) {
      a.half[half] = {{pieces[half].x, pieces[half].y, pieces[half].z, pieces[half].w}};
    }
  }

  __device__ __forceinline__ static IntC start(const int32_t*) {
    return {{kFloatBits, kFloatBits, kFloatBits, kFloatBits}};
  }

  __device__ __forceinline__ static void multiply(IntC& c, const Int8A& a, const Int8B& b) {
    mma_ss8(c, a, b);
  }
};

// A thread's columns of a token: both halves of a step.
__device__ __forceinline__ Int8B half_of(const uint4& step, int half) {
  return half == 0 ? Int8B{{step.x, step.y}} : Int8B{{step.z, step.w}};
}

// acc[i] = fma(dot, w_scale * a_scale, acc[i]) for the four elements of c. w_scales: of rows g
// (low) and g + 8; a0, a1: of the two tokens.
template <Codes kCodes>
__device__ __forceinline__ void add_group(float (&acc)[4], const IntC& c, uint32_t w_scales,
                                          float a0, float a1) {
  const float w_low = low_half(w_scales), w_high = high_half(w_scales);
  constexpr float kBias = Products<kCodes>::kBias;
  acc[0] = fmaf(__int_as_float(c.r[0]) - kBias, w_low * a0, acc[0]);
  acc[1] = fmaf(__int_as_float(c.r[1]) - kBias, w_low * a1, acc[1]);
  acc[2] = fmaf(__int_as_float(c.r[2]) - kBias, w_high * a0, acc[2]);
  acc[3] = fmaf(__int_as_float(c.r[3]) - kBias, w_high * a1, acc[3]);
}

// The slices of K that are summed for themselves, by units: contiguous, decided by the matrix
// alone.

struct Slice {
  int begin, end;  // units
};

__device__ __forceinline__ Slice slice_of(int n_units, int slice) {
  return {n_units * slice / kSlices, n_units * (slice + 1) / kSlices};
}

}  // namespace llama2q::cuda
