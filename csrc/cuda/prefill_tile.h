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

// How the threads of a block deal out 64 rows of kRuns runs of 16 bytes: a thread has run `run` of
// rows first, first + kStep, ..., which are permuted alike.
template <int kRuns_>
struct RunsOfThread {
  static constexpr int kRuns = kRuns_;
  static constexpr int kStep = kPrefillThreads / kRuns;
  static constexpr int kRows = kPrefillKeys / kStep;
  static_assert(kStep % 8 == 0);

  int first, run;

  __device__ __forceinline__ RunsOfThread()
      : first(static_cast<int>(threadIdx.x) / kRuns), run(static_cast<int>(threadIdx.x) % kRuns) {}
};

__device__ __forceinline__ void copy_or_clear(unsigned char* to, const void* from, bool present) {
  if (present) {
    copy_async16(to, from);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
  }
}

// Rows of an f16 block, straight into a tile; rows from n_rows on are zeros.
template <int kDim>
struct HalfBlocks {
  using Tile = HalfTile<kDim>;
  using Runs = RunsOfThread<kDim / 8>;
  static constexpr int kSharedBytes = 2 * Tile::kBytes;

  static __device__ __forceinline__ void start(const uint16_t* rows, int n_rows,
                                               unsigned char* tile) {
    const Runs runs;
    const uint16_t* from = rows + runs.first * kDim + runs.run * 8;
    unsigned char* to = tile + Tile::offset(runs.first, runs.run);
#pragma unroll
    for (int i = 0; i < Runs::kRows; ++i) {
      copy_or_clear(to + i * Runs::kStep * Tile::kRowBytes, from + i * Runs::kStep * kDim,
                    runs.first + i * Runs::kStep < n_rows);
    }
    commit_copies();
  }
};

// Rows of an int8 block: as bytes first, which only the thread that copied them reads, then widened
// into a tile. Rows from n_rows on are zeros.
template <int kDim>
struct Int8Blocks {
  using Tile = HalfTile<kDim>;
  using Runs = RunsOfThread<kDim / 16>;
  static constexpr int kRawBytes = kPrefillKeys * kDim;
  static constexpr int kSharedBytes = 2 * Tile::kBytes + 2 * kRawBytes + kPrefillKeys * 4;

  static __device__ __forceinline__ void start(const int8_t* rows, int n_rows, unsigned char* raw) {
    const Runs runs;
    const int at = static_cast<int>(threadIdx.x) * 16;
#pragma unroll
    for (int i = 0; i < Runs::kRows; ++i) {
      copy_or_clear(raw + at + i * Runs::kStep * kDim, rows + at + i * Runs::kStep * kDim,
                    runs.first + i * Runs::kStep < n_rows);
    }
    commit_copies();
  }

  // Scales of the rows of which this thread has runs.
  static __device__ __forceinline__ void load_scales(const uint16_t* scales, int n_rows,
                                                     uint16_t (&of_rows)[Runs::kRows]) {
    const Runs runs;
#pragma unroll
    for (int i = 0; i < Runs::kRows; ++i) {
      const int row = runs.first + i * Runs::kStep;
      of_rows[i] = row < n_rows ? scales[row] : uint16_t{0};
    }
  }

  // Four codes as halves, exactly: 1024 + byte, less 1152.
  static __device__ __forceinline__ uint2 widen4(uint32_t codes) {
    constexpr uint32_t kLess = 0xe480e480u;  // -1152 twice
    const uint32_t biased = codes ^ 0x80808080u;
    return make_uint2(add_halves(permute_bytes(biased, 0x64646464u, 0x4140u), kLess),
                      add_halves(permute_bytes(biased, 0x64646464u, 0x4342u), kLess));
  }

  // kScaled: times the row's scale, rounded to f16.
  template <bool kScaled>
  static __device__ __forceinline__ void widen(const unsigned char* raw,
                                               const uint16_t (&scales)[Runs::kRows],
                                               unsigned char* tile) {
    const Runs runs;
    const unsigned char* from = raw + threadIdx.x * 16;
    unsigned char* low = tile + Tile::offset(runs.first, 2 * runs.run);
    unsigned char* high = tile + Tile::offset(runs.first, 2 * runs.run + 1);
#pragma unroll
    for (int i = 0; i < Runs::kRows; ++i) {
      const uint4 codes = *reinterpret_cast<const uint4*>(from + i * Runs::kStep * kDim);
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
      const int skipped = i * Runs::kStep * Tile::kRowBytes;
      *reinterpret_cast<uint4*>(low + skipped) =
          make_uint4(halves[0], halves[1], halves[2], halves[3]);
      *reinterpret_cast<uint4*>(high + skipped) =
          make_uint4(halves[4], halves[5], halves[6], halves[7]);
    }
  }
};

}  // namespace llama2q::cuda
