// Arguments of the kernels: plain structs of pointers, with a shape comment on each.
#pragma once

#include <stdint.h>

#include "quant/matrix.h"

namespace llama2q {

inline constexpr int64_t kBlockSize = 64;   // positions per KV block
inline constexpr int64_t kChunkBlocks = 4;  // blocks per attention chunk

// Activations of a matmul. For quantized weights codes, scales and corrections are set, else x.
// They lie in tiles of KernelTable::tile_width tokens (the last may be narrower): a tile of w
// tokens from token t on starts at element t * K of the codes, K = n_groups * group_size, and at
// element t * n_groups of scales and corrections.
struct ActivationView {
  const float* x;              // f32 [n_tokens, cols]
  const int8_t* codes;         // i8, per tile [K / u, w, u], u = kUnitColumns (matmul_panel.h)
  const int16_t* wide_codes;   // i16, per tile [K / 4, 2, w, 2]: columns 0, 2 and 1, 3 of a quad;
                               // where KernelTable::wide_codes asks for them
  const float* scales;         // f32, per tile [n_groups, w]
  const int32_t* corrections;  // i32, per tile [n_groups, w]: -128 * sum of the group's codes
  int64_t n_tokens;
};

// Where quantize_row writes one row of a tile; the pointers are the tile's.
struct TileRow {
  int8_t* codes;
  int16_t* wide_codes;  // may be null
  float* scales;
  int32_t* corrections;
  int64_t width;  // of the tile
  int64_t token;  // in [0, width)
};

enum class Epilogue : int32_t {
  kStore,   // y = acc
  kAdd,     // y = y + acc
  kSwiglu,  // bands alternate gate, up: y = silu(gate) * up
};

struct MatmulArgs {
  const MatrixView* matrix;
  ActivationView input;
  float* y;          // f32 [n_tokens, y_stride]
  int64_t y_rows;    // outputs per token: matrix->rows, or for kSwiglu the rows of one half
  int64_t y_stride;  // elements
  Epilogue epilogue;
};

enum class KvType : int32_t { kF32, kF16, kInt8 };

constexpr int64_t element_bytes(KvType type) {
  return type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1;
}

// One layer's K and V.
struct KvLayerView {
  KvType type;
  int64_t n_blocks;
  int64_t n_kv_heads;
  int64_t head_dim;
  void* k;             // f32, f16 or i8 [n_blocks, n_kv_heads, 64, head_dim]
  void* v;             // likewise
  uint16_t* k_scales;  // f16 [n_blocks, n_kv_heads, 64]; null unless int8
  uint16_t* v_scales;
};

struct AppendArgs {
  KvLayerView cache;
  const float* k;  // f32 [n_tokens, n_kv_heads, head_dim]
  const float* v;
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  const int32_t* block_tables;       // i32 [n_sequences, max_blocks]
  int64_t max_blocks;
};

struct AttentionArgs {
  KvLayerView cache;
  const float* q;                    // f32 [n_tokens, n_heads, head_dim]
  float* out;                        // f32 [n_tokens, n_heads, head_dim]
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  const int32_t* block_tables;       // i32 [n_sequences, max_blocks]
  int64_t max_blocks;
  int64_t n_heads;
  float scale;  // fp32(1 / sqrt(head_dim))
};

// The weights of one layer; norms are f32 [dim].
struct LayerView {
  int64_t index;  // in the model
  const float* attention_norm;
  MatrixView wq, wk, wv;  // [n_heads * head_dim | n_kv_heads * head_dim, dim]
  MatrixView wo;          // [dim, n_heads * head_dim]
  const float* ffn_norm;
  MatrixView w1_w3;  // bands of w1 and w3 alternate; rows = 2 * 16 * ceil(hidden_dim / 16)
  MatrixView w2;     // [dim, hidden_dim]
};

// Rows of f32 that a forward pass keeps.
enum class Rows : int32_t { kX, kQ, kAttended, kHidden, kOutput };
inline constexpr int kRows = 5;

// Query rows of one KV head: row i is query head i % group of the group of token i / group. Their
// tokens belong to one sequence.
struct AttentionTile {
  int64_t kv_head;
  int64_t first_row;
  int64_t n_rows;  // 1 to kTileRows
};

inline constexpr int64_t kTileRows = 24;

constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Floats of a query row's state: the accumulator, maximum and sum, in whole lines of 64 bytes.
constexpr int64_t attention_state(int64_t head_dim) { return padded_head_dim(head_dim) + 16; }

// Floats of scratch that attend() needs: query rows, two states, scores and rescaling factors of a
// chunk, and a widened block if the rows of the cache are no whole vectors.
constexpr int64_t attention_scratch(int64_t head_dim) {
  const int64_t padded = padded_head_dim(head_dim);
  const int64_t row = padded + 2 * attention_state(head_dim) + kChunkBlocks * (kBlockSize + 1);
  return kTileRows * row + (head_dim == padded ? 0 : kBlockSize * padded);
}

// Tokens that pass over a panel before the next is unpacked: a multiple of every kPanelTokens.
inline constexpr int64_t kPanelTokenBlock = 516;
// Columns of a panel: with many tokens it lies in the L2 cache, with few in the L1.
inline constexpr int64_t kPanelColumns = 4096, kSmallPanelColumns = 256;
inline constexpr int64_t kMostPanelBands = 2;

constexpr int64_t panel_columns(int64_t n_tokens) {
  return n_tokens > 16 ? kPanelColumns : kSmallPanelColumns;
}

// Floats of scratch that matmul() needs: a panel, its scales, the sums of two bands.
constexpr int64_t matmul_scratch(int64_t n_tokens) {
  const int64_t tokens = n_tokens < kPanelTokenBlock ? n_tokens : kPanelTokenBlock;
  const int64_t columns = panel_columns(n_tokens);
  if (n_tokens < 2) return 0;
  return columns * kMostPanelBands * kBandRows / 4 + columns / 32 * kMostPanelBands * kBandRows +
         tokens * kMostPanelBands * kBandRows;
}

// Bytes of operands that the dot probe walks over.
inline constexpr int64_t kDotProbeBytes = 64 * 64 + 128;

struct ReadProbe {
  const float* data;       // f32 [n_lines, 16]
  int64_t n_lines;         // a multiple of 4 * n_streams
  int64_t n_streams;       // 1, 2, 4 or 8 read side by side, each an equal part of the lines
  int64_t prefetch_lines;  // how far ahead; 0 for none
};

// C = C + A^T B, or C - A^T B; above kernels of any size, in a kernel m and n are at most
// kGemmTile.
struct GemmArgs {
  const float* a;  // f32 [depth, a_stride], m columns of it
  const float* b;  // f32 [depth, b_stride], n columns of it
  float* c;        // f32 [m, c_stride], n columns of it; overlaps neither a nor b
  int64_t m, n, depth;
  int64_t a_stride, b_stride, c_stride;  // elements
  bool subtract;
  bool lower;  // only elements [i, j] with j <= i; the others are not touched
};

// Rows and columns of C that a thread takes at a time: a multiple of every register tile.
inline constexpr int64_t kGemmTile = 384;
inline constexpr int64_t kGemmDepth = 256;  // rows of A and B that are packed at a time
inline constexpr int64_t kGemmScratch = 2 * kGemmDepth * kGemmTile;

// Columns that ldl eliminates at a time, and rows beside them that a thread takes at a time.
inline constexpr int64_t kLdlBlock = 128, kLdlStrip = 48;

// Tokens of a tile, at most `most`, that n_tokens are dealt out to evenly.
constexpr int64_t stream_width(int64_t n_tokens, int64_t most) {
  const int64_t tiles = (n_tokens + most - 1) / most;
  return tiles < 2 ? n_tokens : (n_tokens + tiles - 1) / tiles;
}

// The grid of int4 for a search by halves: a code is the number of midpoints below a value.
struct GridSearch {
  alignas(64) float value[16];
  alignas(64) float bound[3][16];  // [s, code]: the midpoint that decides about 4, 2, 1 more
  float middle;                    // the midpoint that decides about 8
};

// The columns of a group of weights, for the 16 rows of a band; absent rows are 0.
struct GroupColumns {
  const float* x;        // f32 [n, stride], 16 columns of it
  const float* weights;  // f32 [n], how much each column's error counts; may be null
  int64_t n;             // at least 1
  int64_t stride;        // elements
};

// A group of columns for feed_back(), for the 16 rows of a band.
struct FeedbackGroup {
  float* targets;           // f32 [n, stride]: what to round; changed on the way
  const float* weights;     // f32 [n, stride]: what the errors are relative to
  float* errors;            // f32 [n, stride], out
  const float* factor;      // f32 [n, factor_stride]: the part of L below its diagonal
  const float* importance;  // f32 [n]
  int64_t n;
  int64_t stride, factor_stride;  // elements
};

// Scales that search_scales() begins with, relative to that which puts the extreme on the grid's
// end, and how often it goes on with the least-squares scale of the best one's codes.
// An array in ISA units: of each unit, never shared by the linker.
static constexpr float kScaleFactors[] = {1.0f, 0.86f, 0.93f, 1.07f};
inline constexpr int kScaleRefits = 2;

// What one instruction set offers. The functions are noexcept, allocate nothing and take no lock;
// those that return bool say whether every value was finite (and representable in the cache).
struct KernelTable {
  const char* name;
  int64_t stream_tokens;  // of a tile that reads the file's lines, at most
  int64_t most_streamed;  // so many tokens, or fewer, are such tiles
  int64_t tile_tokens;    // of more, each tile's; divides kPanelTokenBlock
  bool wide_codes;
  // x f32 [cols] -> codes, scales and corrections of a row of a tile.
  bool (*quantize_row)(const float* x, int64_t cols, int64_t group_size,
                       const TileRow& out) noexcept;
  // x, weight, y: f32 [dim].
  void (*rms_norm)(const float* x, const float* weight, int64_t dim, float eps, float* y) noexcept;
  // Bands [begin, end) of the matrix; for kSwiglu a band counts a pair. scratch f32
  // [matmul_scratch(n_tokens)], aligned to 64 bytes.
  void (*matmul)(const MatmulArgs& args, int64_t begin, int64_t end, float* scratch) noexcept;
  // x f32 [n_heads, head_dim] in place; cos, sin f32 [head_dim / 2].
  void (*rope)(float* x, const float* cos, const float* sin, int64_t n_heads,
               int64_t head_dim) noexcept;
  // Appends K and V of one token.
  bool (*append)(const AppendArgs& args, int64_t token) noexcept;
  // A tile of query rows; scratch f32 [attention_scratch(head_dim)].
  void (*attend)(const AttentionArgs& args, const AttentionTile& tile, float* scratch) noexcept;
  // The same in two steps, for few rows and many threads: the states of chunks [begin, end) of the
  // tile, then all chunks folded. states f32 [n_chunks, n_rows, attention_state(head_dim)].
  void (*attend_chunks)(const AttentionArgs& args, const AttentionTile& tile, int64_t begin,
                        int64_t end, float* scratch, float* states) noexcept;
  void (*fold_chunks)(const AttentionArgs& args, const AttentionTile& tile, float* states) noexcept;
  // Row `id` of the table -> x f32 [cols].
  void (*embed)(const EmbeddingView& table, int64_t id, float* x) noexcept;
  // gate, up, y: f32 [n].
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* y) noexcept;
  // y = exp(x), f32 [n]; +0 for x <= -87, exp(87) for x > 87.
  void (*exp)(const float* x, int64_t n, float* y) noexcept;
  // y = exp((x - shift) / divisor), f32 [n]. -inf gives +0.
  void (*exp_scaled)(const float* x, int64_t n, float shift, float divisor, float* y) noexcept;
  // Largest of x f32 [n], or NaN if any is NaN or +inf.
  float (*max_finite)(const float* x, int64_t n) noexcept;
  bool (*all_finite)(const float* x, int64_t n) noexcept;
  // kernels/int4_groups.h. scales f16 [16]: search_scales() replaces those of extreme_scales();
  // codes u8 [n, 16].
  void (*extreme_scales)(const GroupColumns& group, const GridSearch& grid,
                         uint16_t* scales) noexcept;
  void (*search_scales)(const GroupColumns& group, const GridSearch& grid,
                        uint16_t* scales) noexcept;
  void (*round_group)(const GroupColumns& group, const GridSearch& grid, const uint16_t* scales,
                      uint8_t* codes) noexcept;
  bool (*feed_back)(const FeedbackGroup& group, const GridSearch& grid, uint16_t* scales,
                    uint8_t* codes) noexcept;
  // kernels/gemm.h; scratch f32 [kGemmScratch], aligned to 64 bytes.
  void (*gemm)(const GemmArgs& args, float* scratch) noexcept;
  // kernels/ldl.h; w and negated f32 [n, kLdlBlock].
  int64_t (*ldl_block)(float* w, float* negated, int64_t n) noexcept;
  // negated f32 [n, kLdlBlock], pivots f32 [n], w and l f32 [n, kLdlStrip].
  void (*ldl_strip)(const float* negated, const float* pivots, int64_t n, float* w,
                    float* l) noexcept;

  // Tokens of a tile of ActivationView.
  int64_t tile_width(int64_t n_tokens) const {
    return n_tokens <= most_streamed ? stream_width(n_tokens, stream_tokens) : tile_tokens;
  }
  // Benchmarks: kernels/limits.h.
  int64_t (*probe_dots)(int variant, int64_t rounds, const int8_t* operands) noexcept;
  uint32_t (*probe_reads)(const ReadProbe& probe) noexcept;
};

}  // namespace llama2q
