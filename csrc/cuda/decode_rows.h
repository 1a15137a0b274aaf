// How the lanes of a warp hold rows of the cache, in device code: a piece is what a lane loads at
// a time, kWidth consecutive columns, and how these become floats.
#pragma once

#include "cuda/intrinsics.h"

namespace llama2q::cuda {

// Four int8, given as bytes of value + 128, exactly: 2^23 + byte, less 2^23 + 128.
__device__ __forceinline__ void widen_bytes(uint32_t biased, float* x) {
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t bits = permute_bytes(biased, 0x4b000000u, 0x7440u + i);
    x[i] = __uint_as_float(bits) - (8388608.0f + 128.0f);
  }
}

struct HalfOctet {
  using Element = uint16_t;
  using Raw = uint4;
  static constexpr int kWidth = 8;
  static __device__ __forceinline__ Raw absent() { return make_uint4(0, 0, 0, 0); }
  static __device__ __forceinline__ void widen(const Raw& raw, float* x) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = low_half(words[i]);
      x[2 * i + 1] = high_half(words[i]);
    }
  }
};

struct Int8Octet {
  using Element = int8_t;
  using Raw = uint2;
  static constexpr int kWidth = 8;
  static __device__ __forceinline__ Raw absent() { return make_uint2(0, 0); }
  static __device__ __forceinline__ void widen(const Raw& raw, float* x) {
    widen_bytes(raw.x ^ 0x80808080u, x);
    widen_bytes(raw.y ^ 0x80808080u, x + 4);
  }
};

struct FloatPair {
  using Element = float;
  using Raw = float2;
  static constexpr int kWidth = 2;
  static __device__ __forceinline__ Raw absent() { return make_float2(0.0f, 0.0f); }
  static __device__ __forceinline__ void widen(const Raw& raw, float* x) {
    x[0] = raw.x;
    x[1] = raw.y;
  }
};

struct HalfPair {
  using Element = uint16_t;
  using Raw = uint32_t;
  static constexpr int kWidth = 2;
  static __device__ __forceinline__ Raw absent() { return 0; }
  static __device__ __forceinline__ void widen(const Raw& raw, float* x) {
    x[0] = low_half(raw);
    x[1] = high_half(raw);
  }
};

struct Int8Pair {
  using Element = int8_t;
  using Raw = char2;
  static constexpr int kWidth = 2;
  static __device__ __forceinline__ Raw absent() { return Raw{0, 0}; }
  static __device__ __forceinline__ void widen(const Raw& raw, float* x) {
    x[0] = raw.x;
    x[1] = raw.y;
  }
};

// How a warp reads rows: kLanes_ lanes share one, each with kPieces_ pieces, piece p of lane c at
// column (p * kLanes_ + c) * kWidth. kQueries_ query rows look at it. Octets: head_dim is exactly
// that long; pairs: at most.
template <class Piece_, int kLanes_, int kPieces_, int kQueries_>
struct RowShape {
  using Piece = Piece_;
  using Element = typename Piece::Element;
  using Raw = typename Piece::Raw;
  static constexpr int kLanes = kLanes_, kPieces = kPieces_, kQueries = kQueries_;
  static constexpr int kWidth = Piece::kWidth;
  static constexpr int kColumns = kPieces * kWidth;   // of a lane
  static constexpr int kMostDim = kLanes * kColumns;  // of a row
  static constexpr bool kExact = kWidth > 2;
  static constexpr int kRows = 32 / kLanes;                                   // of a load
  static constexpr int kSteps = kLanes;                                       // loads of 32 rows
  static constexpr int kBatch = kSteps > 8 ? (kPieces > 2 ? 4 : 8) : kSteps;  // in flight
  static constexpr int kBatches = kSteps / kBatch;
  static constexpr int kUnrolled = kExact ? 8 : 1;  // batches side by side
  static constexpr bool kScaled = sizeof(Element) == 1;
  // Blocks of 128 threads that a multiprocessor is to have room for, as far as registers go.
  static constexpr int kResident = !kExact         ? (kQueries == 1 ? 4 : 2)
                                   : kQueries == 1 ? 8
                                   : kQueries == 2 ? 6
                                   : kQueries == 4 ? 4
                                   : kLanes == 8   ? 3
                                                   : 2;

  // The first of a lane's columns in a piece.
  static __device__ __forceinline__ int column(int piece) {
    return (piece * kLanes + lane() % kLanes) * kWidth;
  }
  // The row of step s of a batch that the lane holds a part of.
  static __device__ __forceinline__ int row(int batch, int s) {
    return (batch * kBatch + s) * kRows + lane() / kLanes;
  }
  // The row whose score ends in the lane.
  static __device__ __forceinline__ int row_of_sum() {
    const int c = lane() % kLanes;
    return row(c % kBatches, c / kBatches);
  }
};

// One stage of sums over lanes: n values of two lanes that differ in the bit `mask` become n / 2
// sums each; the lane without the bit gets those of the first half. Chosen by bits, not by `?:`,
// which compilers may turn into branches around the shuffles.
template <int n>
__device__ __forceinline__ void halve(float* x, int mask) {
  const uint32_t upper = 0u - ((static_cast<uint32_t>(lane()) / static_cast<uint32_t>(mask)) & 1u);
  for (int i = 0; i < n / 2; ++i) {
    const uint32_t low = __float_as_uint(x[i]), high = __float_as_uint(x[i + n / 2]);
    const uint32_t swapped = (low ^ high) & upper;
    x[i] = __uint_as_float(low ^ swapped) + shuffle_xor(__uint_as_float(high ^ swapped), mask);
  }
}

// n values (a power of two) of each of n lanes, those that differ in the bits mask, mask / 2, ...:
// the sum of value i ends in the lane where these bits are i, in x[0].
template <int n>
__device__ __forceinline__ void fold(float* x, int mask) {
  if constexpr (n > 1) {
    halve<n>(x, mask);
    fold<n / 2>(x, mask / 2);
  }
}

}  // namespace llama2q::cuda
