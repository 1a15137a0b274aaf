// What the table's ops do; they throw.
#pragma once

#include "cuda/device.h"

namespace llama2q {

void queue_embed(Device& device, const EmbeddingView& table, float* x);
void queue_qkv(Device& device, const LayerView& layer, float eps, const KvLayerView& cache,
               const float* x, float* q);
void queue_attend(Device& device, const LayerView& layer, const KvLayerView& cache, const float* q,
                  float* attended);
void queue_project(Device& device, const LayerView& layer, const float* attended, float* x);
void queue_gate_up(Device& device, const LayerView& layer, float eps, const float* x,
                   float* hidden);
void queue_down(Device& device, const LayerView& layer, const float* hidden, float* x);
void queue_output(Device& device, const float* norm, const MatrixView* matrix, float eps,
                  const float* x, float* y);
// Host arrays, filled in when the pass has been finished.
void select_largest(Device& device, int64_t k, float* values, int32_t* ids);
void copy_blocks(Device& device, const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                 const int32_t* destination, int64_t n);

// Brings a matrix of the host to `memory`, band by band, through the staging arrays.
MatrixView place_matrix(Device& device, const MatrixView& host, void* memory);

// Visits (cuda/table.h).
MatrixView stream_matrix(Device& device, const MatrixView& host, void* memory, StreamSlot slot);
void stream_bytes(Device& device, void* to, const void* host, int64_t bytes, StreamSlot slot);
void await_slot(Device& device, StreamSlot slot);
void free_slot(Device& device, StreamSlot slot);

}  // namespace llama2q
