// Shared memory of the block that runs: the static variables, and what the launch asked for.
#pragma once

#include <cstddef>

namespace cuda_emulation {

// Gives a block its memory, every byte 0xff: NaN as f32 and f16, -1 as an integer.
void fill_shared_memory(size_t dynamic_bytes);

}  // namespace cuda_emulation
