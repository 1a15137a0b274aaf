// Copies of KV blocks, on the device.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"
#include "kernels/args.h"

namespace llama2q::cuda {

// K and V (and scales) of source[i] -> destination[i] in every layer; layers that lie at equal
// distances (those of one KvCache) take one launch. layers [n_layers] are host memory, read before
// the call returns; source and destination i32 [n] are device memory. The caller has checked that
// no block is both a source and a destination, and none a destination twice.
void copy_blocks(const Stream& stream, const KvLayerView* layers, int64_t n_layers,
                 const int32_t* source, const int32_t* destination, int64_t n);

}  // namespace llama2q::cuda
