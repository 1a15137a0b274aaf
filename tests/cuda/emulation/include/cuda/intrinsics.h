// What csrc/cuda/intrinsics.h offers, for a host compiler: the same names and meanings, written
// from the PTX ISA and apart from the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/fragments.h"
#include "emulation/execution.h"
#include "emulation/warp.h"

namespace llama2q::cuda {

using cuda_emulation::Place;

inline int lane() { return cuda_emulation::lane_index(); }

inline uint32_t shuffle_xor(uint32_t value, int mask, const Place& place = Place::current()) {
  return cuda_emulation::exchange_xor(value, mask, place);
}

inline int32_t shuffle_xor(int32_t value, int mask, const Place& place = Place::current()) {
  return static_cast<int32_t>(shuffle_xor(static_cast<uint32_t>(value), mask, place));
}

inline float shuffle_xor(float value, int mask, const Place& place = Place::current()) {
  return __uint_as_float(shuffle_xor(__float_as_uint(value), mask, place));
}

inline uint32_t shuffle(uint32_t value, int source, const Place& place = Place::current()) {
  return cuda_emulation::exchange(value, source, place);
}

inline int32_t shuffle(int32_t value, int source, const Place& place = Place::current()) {
  return static_cast<int32_t>(shuffle(static_cast<uint32_t>(value), source, place));
}

inline float shuffle(float value, int source, const Place& place = Place::current()) {
  return __uint_as_float(shuffle(__float_as_uint(value), source, place));
}

inline void sync_block(const Place& place = Place::current()) {
  cuda_emulation::wait_for_block(place);
}

inline void sync_warp(const Place& place = Place::current()) {
  cuda_emulation::wait_for_warp(place);
}

inline unsigned char* dynamic_shared() { return cuda_emulation::dynamic_shared_memory(); }

uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector);
int32_t dot4(uint32_t a, uint32_t b, int32_t acc);
int32_t dot4_us(uint32_t a, uint32_t b, int32_t acc);

void mma_us8(IntC& c, const Int8A& a, const Int8B& b, const Place& place = Place::current());
void mma_ss8(IntC& c, const Int8A& a, const Int8B& b, const Place& place = Place::current());
// The sum of a row is that of float64, rounded once: a device rounds on the way.
void mma_f16(FloatC& c, const HalfA& a, const HalfB& b, const Place& place = Place::current());

uint16_t float_to_half(float x);
float half_to_float(uint16_t half);

inline uint32_t pack_halves(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}

inline float low_half(uint32_t halves) {
  return half_to_float(static_cast<uint16_t>(halves & 0xffffu));
}

inline float high_half(uint32_t halves) {
  return half_to_float(static_cast<uint16_t>(halves >> 16));
}

// In float first: two halves' sum or product, rounded to 24 bits and then to 11, is that rounded
// once (24 >= 2 * 11 + 2).
inline uint32_t add_halves(uint32_t a, uint32_t b) {
  return pack_halves(low_half(a) + low_half(b), high_half(a) + high_half(b));
}

inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  return pack_halves(low_half(a) * low_half(b), high_half(a) * high_half(b));
}

inline float exp2_approximate(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

inline void copy_async16(void* shared, const void* global, const Place& place = Place::current()) {
  cuda_emulation::begin_copy(shared, global, 16, place);
}

inline void commit_copies() { cuda_emulation::close_copy_group(); }

template <int kPending>
void wait_copies() {
  static_assert(kPending >= 0);
  cuda_emulation::wait_for_copies(kPending);
}

void load_matrix_x4(uint32_t (&r)[4], const void* shared_row,
                    const Place& place = Place::current());
void load_matrix_x4_trans(uint32_t (&r)[4], const void* shared_row,
                          const Place& place = Place::current());

uint4 load_streamed(const uint4* address, const Place& place = Place::current());

inline void wait_for_previous(const Place& place = Place::current()) {
  cuda_emulation::note_wait(place);
}
inline void let_next_start() {}
inline void fence() {}

inline uint32_t take_ticket(uint32_t* counter, const Place& place = Place::current()) {
  cuda_emulation::require_wait("take_ticket", place);
  return atomicAdd(counter, 1u);
}

inline void raise_fault(int32_t* fault, int32_t code, const Place& place = Place::current()) {
  cuda_emulation::require_wait("raise_fault", place);
  atomicCAS(fault, 0, code);
}

}  // namespace llama2q::cuda
