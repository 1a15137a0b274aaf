// Matrix times many tokens.
//
// Block: 4 warps along 128 rows (8 bands) by 1 or 2 along tiles of 64 tokens; a warp sums 32 rows
// (2 bands) x 64 tokens. Grid: (token blocks, row blocks of all matrices, splits of K): blocks that
// read the same weights run side by side; where blocks are few, each takes a part of K, and the
// last of a tile to arrive adds the parts in ascending order. Weights come straight from global
// memory, in fragment order, a unit of columns ahead; activations, record by record, through a ring
// in shared memory that copies fill.
//
// Dynamic shared memory: kRing<kGroup> stages of a record per tile.
#include <algorithm>

#include "cuda/gemm.h"
#include "cuda/intrinsics.h"
#include "cuda/math.h"
#include "cuda/products.h"

namespace llama2q::cuda {
namespace {

constexpr int kRowWarps = 4, kTileThreads = kRowWarps * kLanes;
constexpr int kWarpBands = 2, kBlockBands = kRowWarps * kWarpBands;
constexpr int kTiles = kGemmWidth / 8;  // columns of the mma: 8 tokens
constexpr int kRows = static_cast<int>(kBandRows);
// Elements of float4 that the warps of a tile sum.
constexpr int kTileQuads = kWarpBands * kTiles * kTileThreads;
static_assert(kTileQuads * 4 == kTileFloats);
constexpr int kMostSplits = 8, kFewestUnits = 4;  // units of a split

template <int kGroup>
constexpr int kRing = kGroup > kStepColumns ? 3 : 4;  // stages

template <int kGroup>
constexpr RecordLayout kRecord = record_layout(kGroup, kGemmWidth);

// Copies a thread's share of a record, as a group of copies of its own.
template <int kGroup>
__device__ __forceinline__ void copy_record(unsigned char* to, const unsigned char* record,
                                            bool exists, int thread) {
  constexpr int kPieces = kRecord<kGroup>.bytes / static_cast<int>(sizeof(uint4));
  if (exists) {
#pragma unroll
    for (int i = 0; i < (kPieces + kTileThreads - 1) / kTileThreads; ++i) {
      const int piece = i * kTileThreads + thread;
      if (piece < kPieces) copy_async16(to + piece * 16, record + piece * 16);
    }
  }
  commit_copies();
}

// What a thread holds of its bands' weights of a unit, as they lie in memory.
template <Codes kCodes, int kGroup>
struct UnitWeights {
  using Unit = UnitOf<kGroup>;
  static constexpr int kPieces = Products<kCodes>::kPieces;
  static constexpr int kUnitPieces = Unit::kSteps * kPieces;
  uint4 codes[kWarpBands][Unit::kSteps][kPieces];
  uint32_t scales[kWarpBands][Unit::kGroups];
};

// A thread's place in its two bands.
template <Codes kCodes, int kGroup>
struct WeightCursor {
  using Loaded = UnitWeights<kCodes, kGroup>;
  const uint4* codes[kWarpBands];
  const uint32_t* scales[kWarpBands];

  __device__ __forceinline__ WeightCursor(const GemmMatrix& matrix, int n_units, int first_band,
                                          int first_unit) {
    for (int band = 0; band < kWarpBands; ++band) {
      const int unit = min(first_band + band, matrix.n_bands - 1) * n_units + first_unit;
      codes[band] = matrix.codes + (unit * (Loaded::kUnitPieces * kLanes) + lane());
      scales[band] = matrix.scales + (unit * (Loaded::Unit::kGroups * 8) + lane() / 4);
    }
  }
  // Loads a unit and goes to the next.
  __device__ __forceinline__ void load(Loaded& w) {
#pragma unroll
    for (int band = 0; band < kWarpBands; ++band) {
#pragma unroll
      for (int i = 0; i < Loaded::kUnitPieces; ++i) {
        w.codes[band][i / Loaded::kPieces][i % Loaded::kPieces] = codes[band][i * kLanes];
      }
#pragma unroll
      for (int g = 0; g < Loaded::Unit::kGroups; ++g) w.scales[band][g] = scales[band][g * 8];
      codes[band] += Loaded::kUnitPieces * kLanes;
      scales[band] += Loaded::Unit::kGroups * 8;
    }
  }
};

// A unit of two bands, as factors.
template <int kGroup>
struct UnitFactors {
  using Unit = UnitOf<kGroup>;
  StepWeights a[kWarpBands][Unit::kSteps];
  uint32_t scales[kWarpBands][Unit::kGroups];
};

template <Codes kCodes, int kGroup>
__device__ __forceinline__ void unpack(const Products<kCodes>& products,
                                       const UnitWeights<kCodes, kGroup>& w,
                                       UnitFactors<kGroup>& factors) {
  using Unit = UnitOf<kGroup>;
#pragma unroll
  for (int band = 0; band < kWarpBands; ++band) {
#pragma unroll
    for (int s = 0; s < Unit::kSteps; ++s) products.unpack(w.codes[band][s], factors.a[band][s]);
#pragma unroll
    for (int g = 0; g < Unit::kGroups; ++g) factors.scales[band][g] = w.scales[band][g];
  }
}

// Adds a unit to the sums: a tile's record lies in shared memory.
template <Codes kCodes, int kGroup>
__device__ __forceinline__ void add_unit(const UnitFactors<kGroup>& w, const unsigned char* record,
                                         float (&acc)[kWarpBands][kTiles][4]) {
  using Unit = UnitOf<kGroup>;
  using Factors = Products<kCodes>;
  const int t = lane() % 4;
  const auto* const codes = reinterpret_cast<const uint4*>(record) + lane();
  const auto* const starts = reinterpret_cast<const int32_t*>(record + kRecord<kGroup>.starts);
  const auto* const scales = reinterpret_cast<const float*>(record + kRecord<kGroup>.scales);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    IntC c[kWarpBands];
#pragma unroll
    for (int s = 0; s < Unit::kSteps; ++s) {
      const uint4 b = codes[(s * kGemmWidth + tile * 8) * kStepColumns / 16];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = s * kStepColumns + half * 32, group = column / kGroup;
        if (column % kGroup == 0) {
          const int32_t* const from = starts + (group * (kGemmWidth / 2) + tile * 4 + t) * 4;
          for (int band = 0; band < kWarpBands; ++band) c[band] = Factors::start(from);
        }
        for (int band = 0; band < kWarpBands; ++band) {
          Factors::multiply(c[band], w.a[band][s].half[half], half_of(b, half));
        }
        if ((column + 32) % kGroup == 0) {
          const float2 a_scales =
              *reinterpret_cast<const float2*>(scales + group * kGemmWidth + tile * 8 + 2 * t);
          for (int band = 0; band < kWarpBands; ++band) {
            add_group<kCodes>(acc[band][tile], c[band], w.scales[band][group], a_scales.x,
                              a_scales.y);
          }
        }
      }
    }
  }
}

// Writes a warp's outputs; its first token and band.
__device__ __forceinline__ void finish(const GemmArgs& args, const GemmMatrix& matrix,
                                       int first_token, int first_band,
                                       const float (&acc)[kWarpBands][kTiles][4]) {
  const bool paired = args.epilogue == Epilogue::kSwiglu;
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int band = 0; band < (kWarpBands); ++band) {
    if (first_band + band >= matrix.n_bands || (paired && band > 0)) continue;
    const int row = (paired ? first_band / 2 : first_band + band) * kRows + g;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first_token + tile * 8 + 2 * t + i % 2;
        if (token >= args.n_tokens || row + i / 2 * 8 >= matrix.y_rows) continue;
        float* const y = matrix.y + int64_t{token} * matrix.y_rows + row + i / 2 * 8;
        float value = acc[band][tile][i];
        if (paired) value = swiglu(value, acc[1][tile][i]);
        if (args.epilogue == Epilogue::kAdd) value = *y + value;
        *y = value;
      }
    }
  }
}

// Puts a split's sums beside those of the others; true in the block that comes last, whose sums are
// then of all of them. `last`: a word of shared memory.
__device__ __forceinline__ bool combine_splits(const GemmArgs& args,
                                               float (&acc)[kWarpBands][kTiles][4], int* last) {
  const int tile_block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  auto* const parts = reinterpret_cast<float4*>(args.partial) +
                      int64_t{tile_block} * args.n_splits * kTileQuads + thread;
#pragma unroll
  for (int i = 0; i < kWarpBands * kTiles; ++i) {
    const float(&quad)[4] = acc[i / kTiles][i % kTiles];
    parts[static_cast<int>(blockIdx.z) * kTileQuads + i * kTileThreads] = {quad[0], quad[1],
                                                                           quad[2], quad[3]};
  }
  sync_block();
  if (thread == 0) {
    const uint32_t ticket = take_ticket(args.tickets + tile_block);
    *last = ticket + 1 == static_cast<uint32_t>(args.n_splits);
    if (*last != 0) args.tickets[tile_block] = 0;
  }
  sync_block();
  if (*last == 0) return false;
#pragma unroll
  for (int i = 0; i < kWarpBands * kTiles * 4; ++i)
    acc[i / 4 / kTiles][i / 4 % kTiles][i % 4] = 0.0f;
#pragma unroll 1
  for (int split = 0; split < args.n_splits; ++split) {
#pragma unroll
    for (int i = 0; i < kWarpBands * kTiles; ++i) {
      const float4 part = parts[split * kTileQuads + i * kTileThreads];
      float(&quad)[4] = acc[i / kTiles][i % kTiles];
      quad[0] += part.x, quad[1] += part.y, quad[2] += part.z, quad[3] += part.w;
    }
  }
  return true;
}

template <Codes kCodes, int kGroup, int kTokenTiles>
__device__ __forceinline__ void run(const GemmArgs& args, const GemmMatrix& matrix, int row_block) {
  constexpr int kStageBytes = kTokenTiles * kRecord<kGroup>.bytes;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes;
  const int tile = warp / kRowWarps, of_tile = thread % kTileThreads;
  const int token_tile = static_cast<int>(blockIdx.x) * kTokenTiles + tile;
  const int first_band = row_block * kBlockBands + warp % kRowWarps * kWarpBands;
  unsigned char* const ring = dynamic_shared() + tile * kRecord<kGroup>.bytes;

  const Products<kCodes> products{matrix.table};
  const int split = kTokenTiles == 1 ? static_cast<int>(blockIdx.z) : 0;
  const int n_splits = kTokenTiles == 1 ? args.n_splits : 1;
  const int first_unit = args.n_units * split / n_splits;
  const int n_units = args.n_units * (split + 1) / n_splits - first_unit;
  WeightCursor<kCodes, kGroup> cursor(matrix, args.n_units, first_band, first_unit);
  UnitWeights<kCodes, kGroup> loaded;
  cursor.load(loaded);
  let_next_start();
  wait_for_previous();

  // The last block's second tile may be absent: it computes the last one again, for nothing.
  const int source_tile = min(token_tile, args.input.n_tiles - 1);
  const unsigned char* record =
      args.input.records +
      (int64_t{source_tile} * args.n_units + first_unit) * kRecord<kGroup>.bytes;
  int to_copy = n_units;
  for (int stage = 0; stage + 1 < kRing<kGroup>; ++stage) {
    copy_record<kGroup>(ring + stage * kStageBytes, record, to_copy-- > 0, of_tile);
    record += kRecord<kGroup>.bytes;
  }

  float acc[kWarpBands][kTiles][4] = {};
  int from = 0, to = (kRing<kGroup> - 1) * kStageBytes;
#pragma unroll 1
  for (int left = n_units; left > 0; --left) {
    wait_copies<kRing<kGroup> - 2>();
    sync_block();
    copy_record<kGroup>(ring + to, record, to_copy-- > 0, of_tile);
    record += kRecord<kGroup>.bytes;
    UnitFactors<kGroup> factors;
    unpack(products, loaded, factors);
    if (left > 1) cursor.load(loaded);
    add_unit<kCodes, kGroup>(factors, ring + from, acc);
    to = from;
    from = from + kStageBytes == kRing<kGroup> * kStageBytes ? 0 : from + kStageBytes;
  }
  if constexpr (kTokenTiles == 1) {
    if (n_splits > 1) {
      sync_block();
      if (!combine_splits(args, acc, reinterpret_cast<int*>(ring))) return;
    }
  }
  finish(args, matrix, token_tile * kGemmWidth, first_band, acc);
}

template <int kGroup, int kTokenTiles>
__global__ void __launch_bounds__(kTileThreads* kTokenTiles, kTokenTiles == 1 ? 2 : 1)
    gemm_kernel(const __grid_constant__ GemmArgs args) {
  int row_block = static_cast<int>(blockIdx.y), m = 0;
  while (row_block * kBlockBands >= args.matrices[m].n_bands) {
    row_block -= (args.matrices[m++].n_bands + kBlockBands - 1) / kBlockBands;
  }
  const GemmMatrix& matrix = args.matrices[m];
  switch (matrix.kind) {
    case Codes::kLookup:
      return run<Codes::kLookup, kGroup, kTokenTiles>(args, matrix, row_block);
    case Codes::kUniform:
      return run<Codes::kUniform, kGroup, kTokenTiles>(args, matrix, row_block);
    case Codes::kInt8:
      return run<Codes::kInt8, kGroup, kTokenTiles>(args, matrix, row_block);
  }
}

template <int kGroup>
void start(const Stream& stream, int64_t tiles_together, dim3 grid, const GemmArgs& args) {
  const auto threads = static_cast<unsigned>(kTileThreads * tiles_together);
  const auto bytes = static_cast<size_t>(kRing<kGroup> * tiles_together * kRecord<kGroup>.bytes);
  const auto kernel = tiles_together == 1 ? gemm_kernel<kGroup, 1> : gemm_kernel<kGroup, 2>;
  launch(stream, kernel, grid, dim3(threads), bytes, args);
}

}  // namespace

void gemm(const Stream& stream, const DeviceLimits& limits, int64_t group_size, GemmArgs args) {
  int64_t row_blocks = 0;
  for (int m = 0; m < args.n_matrices; ++m) {
    row_blocks += (args.matrices[m].n_bands + kBlockBands - 1) / kBlockBands;
  }
  // Two tiles share a block's weights, if that leaves a block for every multiprocessor. Else tiles
  // get blocks of their own, two for every multiprocessor if K can be split so.
  const int64_t n_tiles = args.input.n_tiles, pairs = (n_tiles + 1) / 2;
  const bool together = pairs * row_blocks >= limits.n_multiprocessors;
  const int64_t splits = std::min<int64_t>({2 * limits.n_multiprocessors / (n_tiles * row_blocks),
                                            kMostSplits, args.n_units / kFewestUnits});
  args.n_splits = together ? 1 : static_cast<int32_t>(std::max<int64_t>(splits, 1));
  const dim3 grid(static_cast<unsigned>(together ? pairs : n_tiles),
                  static_cast<unsigned>(row_blocks), static_cast<unsigned>(args.n_splits));
  if (group_size == 32) return start<32>(stream, together ? 2 : 1, grid, args);
  if (group_size == 64) return start<64>(stream, together ? 2 : 1, grid, args);
  start<128>(stream, together ? 2 : 1, grid, args);
}

}  // namespace llama2q::cuda
