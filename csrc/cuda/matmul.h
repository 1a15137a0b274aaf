// y = x W^T on the device, with what surrounds it in a layer: RMSNorm and quantization before,
// residual, SwiGLU, RoPE and the KV cache behind. All pointers are of device memory; everything is
// queued on the stream. Weights lie as cuda/layout.h says: `codes` and `scales` of a placed
// MatrixView are the device's.
//
// Steps of up to kFewTokens tokens give each output the same bits whatever their number; more may
// differ from these in the last bits.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/launch.h"
#include "cuda/layout.h"
#include "cuda/work.h"
#include "kernels/args.h"

namespace llama2q::cuda {

inline constexpr int kMostMatrices = 3;  // that read one activation in one call

// Where the first value that is not finite is reported.
struct FaultSite {
  int32_t* fault;  // i32 [1]
  int32_t code;    // not 0
};

struct MatmulCall {
  const MatrixView* matrices[kMostMatrices];
  int32_t n_matrices;  // for kAdd and kSwiglu 1; all of the same cols and, if quantized, group_size
  const float* x;      // f32 [n_tokens, cols], aligned to 16 bytes
  int64_t n_tokens;
  const float* norm;  // f32 [cols], aligned to 16 bytes: RMSNorm comes first; may be null
  float eps;
  Epilogue epilogue;
  float* y[kMostMatrices];  // f32 [n_tokens, rows], for kSwiglu [n_tokens, y_rows]
  int64_t y_rows;           // for kSwiglu the rows of one half; else unused
  void* work;               // matmul_work_bytes(), aligned to 256 bytes
  uint32_t* tickets;        // u32 [matmul_tickets()]: 0 at first, and after each launch
  FaultSite fault;
};

// What follows wq, wk, wv: RoPE, and K and V into the cache.
struct AppendTo {
  const float* cos;  // f32 [n_tokens, head_dim / 2]
  const float* sin;
  KvLayerView cache;
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  const int32_t* block_tables;       // i32 [n_sequences, max_blocks]
  int64_t max_blocks;
};

void matmul(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call);

// call: wq, wk, wv with kStore; y[0] receives q. Returns whether all was done. If not (many tokens,
// or dense weights), y[0..2] hold q, k and v as multiplied, and RoPE and the cache are left to the
// caller. y[1] and y[2] are needed in any case.
bool qkv(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call,
         const AppendTo& append);

// y = RMSNorm(x), f32 [n_tokens, cols].
void rms_norm(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
              const float* norm, float eps, float* y, FaultSite fault);

// The matrix as it lies on the device at `memory` (matrix_bytes(), aligned to 256 bytes). Throws
// std::invalid_argument if the kernels cannot hold its grid.
MatrixView placed_matrix(const MatrixView& matrix, void* memory);

// Bytes of a band in the file's layout: of its codes, and of its scales.
int64_t file_band_code_bytes(const MatrixView& matrix);
int64_t file_band_scale_bytes(const MatrixView& matrix);

// Permutes bands [first, first + count) of a quantized matrix. codes, scales: these bands as in the
// file, copied to the device (codes aligned to 4 bytes). Dense bands are copied as they are.
void place_bands(const Stream& stream, const MatrixView& placed, int64_t first, int64_t count,
                 const void* codes, const uint16_t* scales);

}  // namespace llama2q::cuda
