// The work space of a device: its parts, and what decides their sizes. No CUDA header: the core
// plans by the same numbers by which the library takes its memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/gemv_shared.h"
#include "cuda/sizes.h"
#include "cuda/table.h"

namespace llama2q::cuda {

// Steps of up to so many tokens go to the kernels for few, which give each output the same bits
// whatever their number.
inline constexpr int64_t kFewTokens = 32;

inline constexpr int kGemmWidth = 64;            // tokens of a tile of many
inline constexpr int64_t kTileFloats = 8192;     // that the warps of such a tile sum
inline constexpr int64_t kDecodeSplit = 128;     // positions of a block of decode attention
inline constexpr int64_t kDecodeTokens = 32;     // of one of its launches
inline constexpr int64_t kDecodeStates = 65536;  // of a launch, unless one token needs more
inline constexpr int64_t kPrefillRows = 64;      // query rows of a tile of prefill attention
inline constexpr int64_t kSelectChunk = 2048;    // logits that are sorted at a time
inline constexpr int64_t kMostSelected = 64;
inline constexpr size_t kStagingBytes = size_t{16} << 20;

// Query rows of one KV head, of one sequence: row i is query head i % group of the group of token
// i / group.
struct PrefillTile {
  int32_t first_row;
  int32_t n_rows;  // 1 to kPrefillRows
};

// Tiles of n_tokens tokens, at most.
int64_t most_prefill_tiles(int64_t n_tokens, int64_t group);

// Tokens side by side in the activations of a call.
int64_t tile_width(const DeviceLimits& limits, int64_t n_tokens, int64_t cols, int64_t group_size);

// Bytes of Activations (cuda/layout.h) of n_tokens rows, in tiles of `width`.
int64_t activation_bytes(int64_t n_tokens, int64_t width, int64_t cols, int64_t group_size);

// Bytes of each part of a matmul's work space; they follow each other in this order.
struct MatmulWork {
  int64_t activations, normed, partial;
};
// For n_tokens rows of `cols` columns; group_size 0 if no matrix is quantized.
MatmulWork matmul_work(const DeviceLimits& limits, int64_t n_tokens, int64_t cols,
                       int64_t group_size);
int64_t matmul_work_bytes(const DeviceLimits& limits, int64_t n_tokens, int64_t cols,
                          int64_t group_size);

// Tickets: u32, 0 at first, and after each launch.
int64_t gemv_tickets(int64_t n_kv_heads);
int64_t gemm_tickets(const DeviceLimits& limits);
int64_t matmul_tickets(const DeviceLimits& limits, int64_t n_kv_heads);

// Floats and tickets of attend_decode() for up to n_tokens tokens at positions below `context`.
int64_t decode_states(int64_t n_tokens, int64_t n_heads, int64_t head_dim, int64_t context);
int64_t decode_tickets(int64_t n_tokens, int64_t n_heads);

// Keys, u64, of select(); its tickets are n_rows.
int64_t select_keys(int64_t n_rows, int64_t vocab_size, int64_t k);

// Where the arrays of a batch of n tokens lie, in bytes from the first one: in the staging array
// and on the device alike, so that one copy brings all of them. It depends on n and the shape
// alone: recorded passes find them again.
struct BatchLayout {
  BatchLayout(int64_t n_tokens, const DeviceShape& shape);

  size_t fault, token_ids, positions, sequence_of_token, output_rows, cos, sin, tiles, tables;
  size_t table_bytes;  // of one sequence
  size_t end(int64_t n_sequences) const {
    return tables + table_bytes * static_cast<size_t>(n_sequences);
  }
};

// The buffers of an open device, in bytes.
struct WorkSizes {
  WorkSizes(const DeviceShape& shape, const DeviceLimits& limits);
  // Of the device's memory, rounding included.
  int64_t total() const;

  size_t rows[kRows];
  size_t keys;   // or values: f32 [n_tokens, n_kv_heads * head_dim]
  size_t asked;  // f32 [n_rows, dim]
  size_t matmul, matmul_tickets;
  size_t states, decode_tickets;
  size_t select_keys, select_tickets;
  size_t selected;  // f32 or i32 [n_rows, kMostSelected]
  size_t batch;
};

}  // namespace llama2q::cuda
