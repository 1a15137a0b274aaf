// Shared memory of a prefill tile, in device code: 64 rows of K or V in f16, and how rows of the
// cache get there.
#pragma once

#include "cuda/intrinsics.h"
#include "kernels/args.h"

namespace llama2q::cuda {

inline constexpr int kPrefillKeys = 64;  // a block of the cache
inline constexpr int kPrefillThreads = 128;

// [64, kDim] halves. Runs of 8 (16 bytes) of row r are permuted: run c stands at c ^ (r % 8), so
// that the same run of 8 rows lies in 8 different groups of banks.
template <int kDim>
struct HalfTile {
  static constexpr int kRowBytes = 2 * kDim;
  static constexpr int kBytes = kPrefillKeys * kRowBytes;
  static constexpr int kRuns = kDim / 8;

  static __device__ __forceinline__ int offset(int row, int run) {
    return row * kRowBytes + ((run ^ (row % 8)) * 16);
  }
};

// Rows of an f16 block, straight into a tile; rows from n_rows on are zeros.
template <int kDim>
struct HalfBlocks {
  using Tile = HalfTile<kDim>;
  static constexpr int kSharedBytes = 2 * Tile::kBytes;

  static __device__ __forceinline__ void start(const uint16_t* rows, int n_rows,
                                               unsigned char* tile) {
#pragma unroll
    for (int i = 0; i < kPrefillKeys * Tile::kRuns / kPrefillThreads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kPrefillThreads;
      const int row = index / Tile::kRuns, run = index % Tile::kRuns;
      unsigned char* to = tile + Tile::offset(row, run);
      if (row < n_rows) {
        copy_async16(to, rows + row * kDim + run * 8);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
      }
    }
    commit_copies();
  }
};

// Rows of an int8 block: as bytes first, which only the thread that copied them reads, then widened
// into a tile. Rows from n_rows on are zeros.
template <int kDim>
struct Int8Blocks {
  using Tile = HalfTile<kDim>;
  static constexpr int kRawBytes = kPrefillKeys * kDim;
  static constexpr int kRuns = kDim / 16;  // of 16 bytes, in a row
  static constexpr int kRunsPerThread = kPrefillKeys * kRuns / kPrefillThreads;
  static constexpr int kSharedBytes = 2 * Tile::kBytes + 2 * kRawBytes + kPrefillKeys * 4;

  // The row of the i-th run of this thread.
  static __device__ __forceinline__ int row(int i) {
    return (static_cast<int>(threadIdx.x) + i * kPrefillThreads) / kRuns;
  }

  static __device__ __forceinline__ void start(const int8_t* rows, int n_rows, unsigned char* raw) {
#pragma unroll
    for (int i = 0; i < kRunsPerThread; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kPrefillThreads;
      if (row(i) < n_rows) {
        copy_async16(raw + index * 16, rows + index * 16);
      } else {
        *reinterpret_cast<uint4*>(raw + index * 16) = make_uint4(0, 0, 0, 0);
      }
    }
    commit_copies();
  }

  // Four codes as halves, exactly: 1024 + byte, less 1152.
  static __device__ __forceinline__ uint2 widen4(uint32_t codes) {
    constexpr uint32_t kLess = 0xe480e480u;  // -1152 twice
    const uint32_t biased = codes ^ 0x80808080u;
    return make_uint2(add_halves(permute_bytes(biased, 0x64646464u, 0x4140u), kLess),
                      add_halves(permute_bytes(biased, 0x64646464u, 0x4342u), kLess));
  }

  // kScaled: run i times scales[i], rounded to f16.
  template <bool kScaled>
  static __device__ __forceinline__ void widen(const unsigned char* raw, const uint16_t* scales,
                                               unsigned char* tile) {
#pragma unroll
    for (int i = 0; i < kRunsPerThread; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kPrefillThreads;
      const uint4 codes = *reinterpret_cast<const uint4*>(raw + index * 16);
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      uint32_t halves[8];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint2 four = widen4(words[w]);
        halves[2 * w] = four.x;
        halves[2 * w + 1] = four.y;
      }
      if constexpr (kScaled) {
        const uint32_t scale = scales[i] * 0x10001u;
#pragma unroll
        for (int w = 0; w < 8; ++w) halves[w] = multiply_halves(halves[w], scale);
      }
      const int run = 2 * (index % kRuns);
      *reinterpret_cast<uint4*>(tile + Tile::offset(row(i), run)) =
          make_uint4(halves[0], halves[1], halves[2], halves[3]);
      *reinterpret_cast<uint4*>(tile + Tile::offset(row(i), run + 1)) =
          make_uint4(halves[4], halves[5], halves[6], halves[7]);
    }
  }
};

}  // namespace llama2q::cuda
