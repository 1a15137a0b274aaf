// Matrix times few tokens, at the speed of memory.
//
// Block: 256 threads, 8 warps; warp w sums slice w of K (products.h) of all bands of its block.
// Grid: (tiles of tokens, blocks), so that tiles share what they read; a block takes every n-th set
// of bands of its segment. Each warp copies chunks of 4 x 512 bytes of codes and their scales into
// a ring of its own, two ahead of the one that it works on, across the ends of bands; the first two
// before the launch before has ended. A lane reads the codes that it copied itself; scales, one
// word per group and lane / 4, need the sync_warp(). Tokens are columns of the mma; a single one is
// broadcast to all 8, from shared memory, where each warp quantizes or copies its slice. At the end
// of a band the slices meet in shared memory and are added in ascending order.
//
// Dynamic shared memory: the rings, the sums of a band twice, and for a single token its records
// (SharedLayout below).
#include <algorithm>

#include "cuda/gemv.h"
#include "cuda/gemv_input.h"
#include "cuda/intrinsics.h"
#include "cuda/products.h"
#include "cuda/quantize.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = kRowThreads;
constexpr int kRows = static_cast<int>(kBandRows);
constexpr int kBlocksPerMultiprocessor = 2;

struct Place {
  int matrix, set;  // set of the matrix
};

__device__ __forceinline__ Place place_of(const GemvArgs& args, const GemvSegment& segment,
                                          int set) {
  int matrix = segment.first_matrix;
  while (set >= args.matrices[matrix].n_sets) set -= args.matrices[matrix++].n_sets;
  return {matrix, set};
}

// The chunks of a warp's slice of all bands of its block, copied one by one.
template <Codes kCodes, int kGroup>
struct WeightStream {
  using Unit = UnitOf<kGroup>;
  static constexpr int kUnitPieces = Unit::kSteps * Products<kCodes>::kPieces;
  static constexpr int kUnits = kChunkPieces / kUnitPieces;  // of a chunk
  static constexpr int kUnitLines = Unit::kGroups * 2;       // uint4 of a unit's scales

  const GemvArgs& args;
  const GemvSegment& segment;
  Slice slice;
  int set;  // of the segment
  int band = 0;
  int left = 0;  // units of the slice
  const uint4* codes = nullptr;
  const uint4* scales = nullptr;

  __device__ __forceinline__ void enter_band() {
    left = 0;
    if (set >= segment.n_sets) return;
    const Place place = place_of(args, segment, set);
    const GemvMatrix& matrix = args.matrices[place.matrix];
    const int unit = (place.set * args.set_bands + band) * args.n_units + slice.begin;
    codes = matrix.codes + (unit * (kUnitPieces * kLanes) + lane());
    scales = reinterpret_cast<const uint4*>(matrix.scales) + (unit * kUnitLines + lane());
    left = slice.end - slice.begin;
  }

  __device__ __forceinline__ void next_band() {
    if (++band == args.set_bands) {
      band = 0;
      set += segment.n_blocks;
    }
    enter_band();
  }

  // Copies the next chunk, if there is one, as a group of copies of its own.
  __device__ __forceinline__ void copy(unsigned char* stage) {
    unsigned char* const to = stage + lane() * static_cast<int>(sizeof(uint4));
    if (left >= kUnits) {
#pragma unroll
      for (int i = 0; i < kChunkPieces; ++i) {
        copy_async16(to + i * kPieceBytes, codes + i * kLanes);
      }
      if (lane() < kUnits * kUnitLines) copy_async16(to + kChunkBytes, scales);
    } else if (left > 0) {
#pragma unroll
      for (int i = 0; i < kChunkPieces - kUnitPieces; ++i) {
        if (i / kUnitPieces < left) copy_async16(to + i * kPieceBytes, codes + i * kLanes);
      }
      if (lane() < left * kUnitLines) copy_async16(to + kChunkBytes, scales);
    }
    commit_copies();
    left -= kUnits;
    codes += kChunkPieces * kLanes;
    scales += kUnits * kUnitLines;
    if (left <= 0) next_band();
  }
};

// Adds unit `i` of a chunk, which is unit `i` of the input, to the sums of the thread.
template <Codes kCodes, int kGroup, int kWidth, int kTiles>
__device__ __forceinline__ void add_unit(const Products<kCodes>& products,
                                         const unsigned char* chunk,
                                         const TokenInput<kGroup, kWidth>& input, int i,
                                         float (&acc)[kTiles][4]) {
  using Unit = UnitOf<kGroup>;
  constexpr int kPieces = Products<kCodes>::kPieces;
  const auto* const codes = reinterpret_cast<const uint4*>(chunk) + lane();
  const auto* const w_scales = reinterpret_cast<const uint32_t*>(chunk + kChunkBytes) + lane() / 4;
  IntC c[kTiles];
#pragma unroll
  for (int s = 0; s < Unit::kSteps; ++s) {
    uint4 b[kTiles];
    for (int tile = 0; tile < kTiles; ++tile) b[tile] = input.load(i, s, tile);
    uint4 pieces[kPieces];
    for (int p = 0; p < kPieces; ++p) {
      pieces[p] = codes[((i * Unit::kSteps + s) * kPieces + p) * kLanes];
    }
    StepWeights a;
    products.unpack(pieces, a);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = s * kStepColumns + half * 32, group = column / kGroup;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (column % kGroup == 0) c[tile] = products.start(input.starts_of(i, group, tile));
        products.multiply(c[tile], a.half[half], half_of(b[tile], half));
        if ((column + 32) % kGroup == 0) {
          const float2 a_scales = input.scales_of(i, group, tile);
          const uint32_t w = w_scales[(i * Unit::kGroups + group) * 8];
          add_group<kCodes>(acc[tile], c[tile], w, a_scales.x, a_scales.y);
        }
      }
    }
  }
}

// Writes a thread's sums of a slice: f32 [width, 16 rows].
template <int kWidth, int kTiles>
__device__ __forceinline__ void store_sums(const float (&acc)[kTiles][4], float* sums) {
  const int g = lane() / 4, t = lane() % 4;
  if constexpr (kWidth == 1) {
    if (t == 0) sums[g] = acc[0][0], sums[g + 8] = acc[0][2];
  } else {
    for (int tile = 0; tile < kTiles; ++tile) {
      float* const to = sums + (tile * 8 + 2 * t) * kRows + g;
      to[0] = acc[tile][0];
      to[kRows] = acc[tile][1];
      to[8] = acc[tile][2];
      to[kRows + 8] = acc[tile][3];
    }
  }
}

// One output of a set; whole warps call this. `first` is of the first band of a pair.
__device__ __forceinline__ void finish_output(const GemvArgs& args, const GemvMatrix& matrix,
                                              int row, int token, bool exists, float first,
                                              float value) {
  if (matrix.role == Role::kQuery || matrix.role == Role::kKey) {
    value = rotate_row(args.append, token, row, value, exists);
  }
  if (!exists) return;
  const bool cached = matrix.role == Role::kKey || matrix.role == Role::kValue;
  if (cached && args.append.cache.type != KvType::kInt8) {
    append_element(args.append, matrix.role == Role::kKey, token, row, value, args.fault);
    return;
  }
  float* const y = matrix.y + int64_t{token} * matrix.y_rows + row;
  if (args.epilogue == Epilogue::kAdd) value = *y + value;
  if (args.epilogue == Epilogue::kSwiglu) value = swiglu(first, value);
  *y = value;
}

template <Codes kCodes, int kGroup, int kWidth>
__device__ __forceinline__ void run(const GemvArgs& args, const GemvSegment& segment, int block) {
  using Input = TokenInput<kGroup, kWidth>;
  using Weights = WeightStream<kCodes, kGroup>;
  constexpr int kOutputs = kWidth * kRows, kUnits = Weights::kUnits;
  constexpr int kStageBytes = stage_bytes(kGroup), kRingBytes = ring_bytes(kGroup);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes;
  unsigned char* const shared = dynamic_shared();
  const SharedLayout at = shared_layout(kGroup, kWidth, args.n_units);
  unsigned char* const ring = shared + warp * kRingBytes;
  auto* const all_sums = reinterpret_cast<float*>(shared + at.sums);
  auto* const scratch = reinterpret_cast<float*>(shared + at.scratch);
  const Slice slice = slice_of(args.n_units, warp);

  Weights weights{args, segment, slice, block};
  weights.enter_band();
  for (int stage = 0; stage + 1 < kStages; ++stage) {
    weights.copy(ring + stage * kStageBytes);
  }
  let_next_start();
  wait_for_previous();

  const int token_tile = static_cast<int>(blockIdx.x);
  constexpr int kRecordBytes = Input::kRecord.bytes;
  const unsigned char* records;  // of the slice
  if constexpr (kWidth == 1) {
    unsigned char* const own = shared + at.records + slice.begin * kRecordBytes;
    if (args.x != nullptr) {
      prepare_token<kGroup>(args, slice, own, scratch);
    } else {
      copy_records(own, args.input.records + slice.begin * kRecordBytes,
                   (slice.end - slice.begin) * kRecordBytes);
    }
    records = own;
  } else {
    records = args.input.records + int64_t{token_tile * args.n_units + slice.begin} * kRecordBytes;
  }

  int from = 0, to = (kStages - 1) * kStageBytes;  // of the ring
  int parity = 0, output = thread;
  for (int set = block; set < segment.n_sets; set += segment.n_blocks) {
    const Products<kCodes> products{args.matrices[place_of(args, segment, set).matrix].table};
    float first = 0.0f, value = 0.0f;
    for (int band = 0; band < args.set_bands; ++band) {
      float acc[Input::kTiles][4] = {};
      Input input(records);
      for (int left = slice.end - slice.begin; left > 0; left -= kUnits) {
        wait_copies<kStages - 2>();
        sync_warp();
        weights.copy(ring + to);
        const unsigned char* const chunk = ring + from;
        if (left >= kUnits) {
#pragma unroll
          for (int i = 0; i < kUnits; ++i) add_unit(products, chunk, input, i, acc);
          input.advance(kUnits);
        } else {
#pragma unroll 1
          for (int i = 0; i < left; ++i) add_unit(products, chunk, input, i, acc);
        }
        to = from;
        from = from + kStageBytes == kRingBytes ? 0 : from + kStageBytes;
      }
      float* const sums = all_sums + parity * kSlices * kOutputs;
      parity ^= 1;
      store_sums<kWidth>(acc, sums + warp * kOutputs);
      sync_block();
      first = value;
      if (output < kOutputs) {
        value = sums[output];
        for (int s = 1; s < kSlices; ++s) value += sums[s * kOutputs + output];
      }
    }
    const Place place = place_of(args, segment, set);
    const GemvMatrix& matrix = args.matrices[place.matrix];
    const int row = place.set * kRows + output % kRows;
    const int token = token_tile * kWidth + output / kRows;
    if (output / kLanes * kLanes < kOutputs) {
      const bool exists = output < kOutputs && token < args.n_tokens && row < matrix.y_rows;
      finish_output(args, matrix, row, token, exists, first, value);
    }
    // The warps take turns at finishing sets, so that none falls behind.
    output = (output + kLanes) % kThreads;
    if (args.append.cache.type == KvType::kInt8 &&
        (matrix.role == Role::kKey || matrix.role == Role::kValue)) {
      const bool key = matrix.role == Role::kKey;
      const int n_heads = static_cast<int>(args.append.cache.n_kv_heads);
      append_finished_heads(args.append, key, matrix.y, place.set * kRows, matrix.y_rows,
                            token_tile * kWidth, min((token_tile + 1) * kWidth, args.n_tokens),
                            args.tickets + (token_tile * 2 + (key ? 0 : 1)) * n_heads,
                            reinterpret_cast<int*>(scratch), args.fault);
    }
  }
}

template <int kGroup, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth == 1 ? 3 : 2)
    gemv_kernel(const __grid_constant__ GemvArgs args) {
  int block = static_cast<int>(blockIdx.y), s = 0;
  while (block >= args.segments[s].n_blocks) block -= args.segments[s++].n_blocks;
  const GemvSegment& segment = args.segments[s];
  switch (segment.codes) {
    case Codes::kLookup:
      return run<Codes::kLookup, kGroup, kWidth>(args, segment, block);
    case Codes::kUniform:
      return run<Codes::kUniform, kGroup, kWidth>(args, segment, block);
    case Codes::kInt8:
      return run<Codes::kInt8, kGroup, kWidth>(args, segment, block);
  }
}

template <int kGroup>
auto kernel_of(int64_t width) {
  return width == 1   ? gemv_kernel<kGroup, 1>
         : width == 8 ? gemv_kernel<kGroup, 8>
                      : gemv_kernel<kGroup, 16>;
}

// Blocks of each segment by its share of the bytes; returns their number.
int64_t deal_blocks(GemvArgs& args, int64_t most) {
  const auto weight = [](const GemvSegment& segment) {
    return int64_t{segment.n_sets} * (segment.codes == Codes::kInt8 ? 2 : 1);
  };
  int64_t total = 0, n_blocks = 0;
  for (int s = 0; s < args.n_segments; ++s) total += weight(args.segments[s]);
  for (int s = 0; s < args.n_segments; ++s) {
    GemvSegment& segment = args.segments[s];
    const int64_t share = std::max<int64_t>((most * weight(segment) + total / 2) / total, 1);
    segment.n_blocks = static_cast<int32_t>(std::min<int64_t>(segment.n_sets, share));
    n_blocks += segment.n_blocks;
  }
  return n_blocks;
}

}  // namespace

void gemv(const Stream& stream, const DeviceLimits& limits, int64_t group_size, GemvArgs args) {
  const int64_t width = args.x != nullptr ? 1 : args.input.width;
  const int64_t n_tiles = args.x != nullptr ? 1 : args.input.n_tiles;
  const int64_t bytes =
      shared_layout(static_cast<int>(group_size), static_cast<int>(width), args.n_units).end;
  // What one block may have is about what the blocks of a multiprocessor have together.
  const int64_t together =
      std::clamp<int64_t>(limits.shared_bytes / bytes, 1, kBlocksPerMultiprocessor);
  const int64_t most = std::max<int64_t>(limits.n_multiprocessors * together / n_tiles, 1);
  const dim3 grid(static_cast<unsigned>(n_tiles), static_cast<unsigned>(deal_blocks(args, most)));
  const auto kernel = group_size == 32   ? kernel_of<32>(width)
                      : group_size == 64 ? kernel_of<64>(width)
                                         : kernel_of<128>(width);
  launch(stream, kernel, grid, dim3(kThreads), static_cast<size_t>(bytes), args);
}

}  // namespace llama2q::cuda
