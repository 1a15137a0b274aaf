// Attention on the device: RoPE and append, then decode or prefill. All pointers are device
// memory, unless a comment says host.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"
#include "cuda/work.h"
#include "kernels/args.h"

namespace llama2q::cuda {

// Where the tokens of a step stand. Kernels read it when they run: a graph may be replayed after
// the arrays have changed.
struct TokenView {
  int64_t n_tokens;
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  const int32_t* block_tables;       // i32 [n_sequences, max_blocks]
  int64_t max_blocks;
};

struct RopeAppendArgs {
  KvLayerView cache;
  TokenView tokens;
  int64_t n_heads;
  float* q;          // f32 [n_tokens, n_heads, head_dim], rotated in place
  const float* k;    // f32 [n_tokens, n_kv_heads, head_dim], rotated on the way to the cache
  const float* v;    // f32 [n_tokens, n_kv_heads, head_dim]
  const float* cos;  // f32 [n_tokens, head_dim / 2]
  const float* sin;
  int32_t* fault;  // receives fault_code (not 0), if it is 0
  int32_t fault_code;
};

struct AttendArgs {
  KvLayerView cache;
  TokenView tokens;
  int64_t n_heads;
  const float* q;  // f32 [n_tokens, n_heads, head_dim]
  float* out;      // f32 [n_tokens, n_heads, head_dim]
  float scale;     // fp32(1 / sqrt(head_dim))
  int32_t* fault;  // receives fault_code (not 0), if it is 0
  int32_t fault_code;
};

// head_dim is even and at most kMostHeadDim.
inline constexpr int64_t kMostHeadDim = 256;

// RoPE of q and k, K and V to the cache: the CPU's bytes. A value that the cache cannot hold is a
// fault.
void rope_append(const Stream& stream, const RopeAppendArgs& args);

// Work space of attend_decode(), which may be shared by all layers.
struct DecodeScratch {
  float* states;      // f32 [decode_states(...)]
  uint32_t* tickets;  // u32 [decode_tickets(...)], 0 before the first call; 0 again after each
};

// For a few tokens: any head_dim, type and number of heads. A row's result depends on its position,
// q and the cache alone, to the bit. `context`: above every position; the launch covers as many.
// `run`: tokens of a sequence that come together, at most; a block of threads reads K and V once
// for several of them (1 where every token is of another sequence; more is right, too, but slower
// there).
void attend_decode(const Stream& stream, const AttendArgs& args, const DecodeScratch& scratch,
                   int64_t context, int64_t run = 1);

// Has attend_prefill() a kernel for it? Otherwise attend_decode() is right, too.
bool has_prefill(KvType type, int64_t head_dim);

// Cuts a step into tiles, those that see most keys first; returns how many. All is host memory.
int64_t cut_prefill_tiles(const int32_t* positions, const int32_t* sequence_of_token,
                          int64_t n_tokens, int64_t group, PrefillTile* tiles);

// On tensor cores: q, the weights of the softmax and int8's values are rounded to f16 on the way.
// A row's result does not depend on the tiles. q that f16 cannot hold is a fault.
void attend_prefill(const Stream& stream, const AttendArgs& args, const PrefillTile* tiles,
                    int64_t n_tiles);

}  // namespace llama2q::cuda
