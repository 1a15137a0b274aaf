// Operations of a warp that only move words.
#pragma once

#include <cstdint>

#include "emulation/execution.h"

namespace cuda_emulation {

uint32_t exchange_xor(uint32_t value, int mask, const Place& place);
uint32_t exchange(uint32_t value, int source, const Place& place);
void wait_for_warp(const Place& place);

}  // namespace cuda_emulation
