// What a library of device kernels offers to the core: a table of C functions, found under one
// name, whose version and size are checked before anything is called. No CUDA header here. The
// functions throw nothing; those that return int return 0, or another number with `failure`
// filled in. Rows and views are of device memory, unless a comment says host. All that is called
// between begin() and finish() is queued: it may not have been done when the call returns.
#pragma once

#include <stdint.h>

#include "kernels/args.h"
#include "quant/matrix.h"

namespace llama2q {

inline constexpr uint32_t kDeviceTableVersion = 1;
inline constexpr char kDeviceTableSymbol[] = "llama2q_device_table";

enum class DeviceFault : int32_t { kNone, kOutOfMemory, kNoDevice, kOldDriver, kOther };

// Where a value was not finite.
enum class DeviceOp : int32_t { kEmbed, kQkv, kAttend, kProject, kGateUp, kDown, kOutput, kSelect };
inline constexpr int32_t kDeviceOps = 8;

// Where weights and cache of a layer that visits the device lie; the op that reads them last frees
// them.
enum class StreamSlot : int32_t { kQkv, kProject, kGateUp, kDown, kCache };
inline constexpr int kStreamSlots = 5;

struct DeviceFailure {
  DeviceFault fault;
  char text[488];
};

struct DeviceInfo {
  char name[128];
  int64_t total_bytes, free_bytes;
  int32_t major, minor;  // compute capability
  int32_t n_multiprocessors;
  int64_t shared_bytes;      // that a block may have
  int32_t driver_version;    // 1000 * major + 10 * minor of the CUDA version that it supports
  int64_t bytes_per_second;  // of its memory, by its clock and bus; 0 if it does not tell
};

// What decides grids and tiles.
struct DeviceLimits {
  int64_t n_multiprocessors;
  int64_t shared_bytes;  // that a block may have (cudaDevAttrMaxSharedMemoryPerBlockOptin)
};

// What decides the size of a device's work space (cuda/work.h).
struct DeviceShape {
  int64_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size;
  int64_t n_ctx_blocks;   // blocks of the longest block table
  int64_t max_sequences;  // block tables of a step
  int64_t n_tokens;       // of a pass over the layers, at most
  int64_t n_rows;         // outputs of a pass, at most
};

// Host arrays, copied by begin().
struct DeviceBatch {
  int64_t n_tokens, n_sequences, max_blocks, n_rows;
  const int32_t* token_ids;          // [n_tokens]; may be null
  const int32_t* positions;          // [n_tokens]
  const int32_t* sequence_of_token;  // [n_tokens]
  const int32_t* block_tables;       // [n_sequences, max_blocks]
  const int32_t* output_rows;        // [n_rows]
  const float* cos;                  // [n_tokens, head_dim / 2]
  const float* sin;
};

struct Device;

struct DeviceTable {
  uint32_t version;
  uint32_t size;        // of this struct
  const char* targets;  // "sm_75 sm_80 ..."

  int (*count)(int32_t* n, DeviceFailure* failure);
  int (*describe)(int32_t index, DeviceInfo* info, DeviceFailure* failure);
  // Takes the device's work space, too.
  int (*open)(int32_t index, const DeviceShape* shape, Device** device, DeviceFailure* failure);
  void (*close)(Device* device);

  // Memory of the device. copy_in and copy_out have been done when they return.
  int (*allocate)(Device* device, int64_t bytes, void** memory, DeviceFailure* failure);
  void (*release)(Device* device, void* memory);
  int (*copy_in)(Device* device, void* to, const void* host, int64_t bytes, DeviceFailure* failure);
  int (*copy_out)(Device* device, void* host, const void* from, int64_t bytes,
                  DeviceFailure* failure);

  // Copies a matrix to `memory` (cuda/sizes.h, matrix_bytes(), aligned to 256 bytes), permutes it,
  // and describes it in `placed`.
  int (*place_matrix)(Device* device, const MatrixView* host, void* memory, MatrixView* placed,
                      DeviceFailure* failure);

  // Visits: stream_matrix() and stream_bytes() are place_matrix() and copy_in() of weights that may
  // be on their way while earlier ops run, as soon as their slot is free; the host's memory has
  // been read when they return. await_slot(): ops that follow see what was streamed to it.
  // free_slot(): the ops so far are the last that read it.
  int (*stream_matrix)(Device* device, const MatrixView* host, void* memory, StreamSlot slot,
                       MatrixView* placed, DeviceFailure* failure);
  int (*stream_bytes)(Device* device, void* to, const void* host, int64_t bytes, StreamSlot slot,
                      DeviceFailure* failure);
  int (*await_slot)(Device* device, StreamSlot slot, DeviceFailure* failure);
  int (*free_slot)(Device* device, StreamSlot slot, DeviceFailure* failure);

  float* (*rows)(Device* device, Rows which);
  // What the device had to do without, for the user; null if nothing.
  const char* (*note)(const Device* device);

  // A pass: begin, then either replay (found = 1: all that was recorded under the key is queued
  // again), or the ops, between record and end_record if they are to be replayed; then finish,
  // which waits. `layer` and `op` of a value that is not finite, else layer = -1.
  int (*begin)(Device* device, const DeviceBatch* batch, DeviceFailure* failure);
  int (*replay)(Device* device, uint64_t key, int32_t* found, DeviceFailure* failure);
  int (*record)(Device* device, DeviceFailure* failure);
  int (*end_record)(Device* device, uint64_t key, int32_t keep, DeviceFailure* failure);
  int (*finish)(Device* device, int64_t* layer, int32_t* op, DeviceFailure* failure);

  // The ops of backend/backend.h, for the tokens of the batch. `layer` is named if a value is not
  // finite. Matrices lie as csrc/cuda/layout.h says.
  int (*embed)(Device* device, const EmbeddingView* table, float* x, DeviceFailure* failure);
  int (*qkv)(Device* device, const LayerView* layer, float eps, const KvLayerView* cache,
             const float* x, float* q, DeviceFailure* failure);
  int (*attend)(Device* device, const LayerView* layer, const KvLayerView* cache, const float* q,
                float* attended, DeviceFailure* failure);
  int (*project)(Device* device, const LayerView* layer, const float* attended, float* x,
                 DeviceFailure* failure);
  int (*gate_up)(Device* device, const LayerView* layer, float eps, const float* x, float* hidden,
                 DeviceFailure* failure);
  int (*down)(Device* device, const LayerView* layer, const float* hidden, float* x,
              DeviceFailure* failure);
  // The batch's output_rows of x -> y: logits, or the final norm alone if matrix is null.
  int (*output)(Device* device, const float* norm, const MatrixView* matrix, float eps,
                const float* x, float* y, DeviceFailure* failure);
  // k <= 64 largest of each row of Rows::kOutput, descending, ties to the lower id -> host
  // [n_rows, k]; behind the ops, before finish().
  int (*select)(Device* device, int64_t k, float* values, int32_t* ids, DeviceFailure* failure);

  // K and V of source[i] -> destination[i] (host arrays) in every layer (a host array of views).
  int (*copy_blocks)(Device* device, const KvLayerView* layers, int64_t n_layers,
                     const int32_t* source, const int32_t* destination, int64_t n,
                     DeviceFailure* failure);
};

}  // namespace llama2q
