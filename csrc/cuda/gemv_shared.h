// Shared memory of a block of gemv.cu. No CUDA header.
#pragma once

#include "cuda/sizes.h"

namespace llama2q::cuda {

inline constexpr int kRowThreads = 256;  // of a block that norms a row
inline constexpr int kRowWarps = kRowThreads / kLanes;
inline constexpr int kSlices = 8;  // of K, each a warp's

inline constexpr int kStages = 3;
inline constexpr int kChunkPieces = 4;
inline constexpr int kPieceBytes = kLanes * 16;
inline constexpr int kChunkBytes = kChunkPieces * kPieceBytes;

// Columns of a chunk are fewer for int8; room is left for the scales of int4.
constexpr int stage_bytes(int group_size) {
  return kChunkBytes + kChunkPieces * kStepColumns / group_size * kLanes;
}
constexpr int ring_bytes(int group_size) { return kStages * stage_bytes(group_size); }

// Where the parts of a block's shared memory begin, in bytes.
struct SharedLayout {
  int sums, records, scratch, end;
};

constexpr SharedLayout shared_layout(int group_size, int width, int n_units) {
  constexpr int kWord = 4;  // bytes
  SharedLayout at{};
  at.sums = kSlices * ring_bytes(group_size);
  at.records = at.sums + 2 * kSlices * width * static_cast<int>(kBandRows) * kWord;
  const int record = record_layout(group_size, width).bytes;
  at.scratch = at.records + (width == 1 ? n_units * record : 0);
  at.end = at.scratch + kRowWarps * kWord;
  return at;
}

}  // namespace llama2q::cuda
