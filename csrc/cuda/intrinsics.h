// Everything that kernels say to the hardware beyond C++: the only file with PTX, and the only one
// that asks for which architecture it is compiled. tests/cuda/emulation has a header of the same
// name that says the same to a host compiler.
//
// What concerns a warp (shuffles, sync_warp, mma_*, load_matrix_*) is called by its 32 threads
// together, what concerns a block (sync_block) by all of its threads that have not ended.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/fragments.h"

namespace llama2q::cuda {

__device__ __forceinline__ int lane() {
  int index;
  asm("mov.u32 %0, %%laneid;" : "=r"(index));
  return index;
}

// The value of lane (own ^ mask).
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ int32_t shuffle_xor(int32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The value of lane `source`, in [0, 32).
__device__ __forceinline__ float shuffle(float value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

__device__ __forceinline__ int32_t shuffle(int32_t value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

__device__ __forceinline__ uint32_t shuffle(uint32_t value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }

__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// The shared memory that the launch asked for, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ uint4 llama2q_dynamic_shared[];
  return reinterpret_cast<unsigned char*>(llama2q_dynamic_shared);
}

// Byte i of the result is byte (selector >> 4 i) & 7 of b:a (a's are 0-3), or, where bit 3 of that
// nibble is set, that byte's sign in all 8 bits.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

// acc + the dot of four int8 and four int8.
__device__ __forceinline__ int32_t dot4(uint32_t a, uint32_t b, int32_t acc) {
  int32_t sum;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
  return sum;
}

// acc + the dot of four uint8 (a) and four int8 (b).
__device__ __forceinline__ int32_t dot4_us(uint32_t a, uint32_t b, int32_t acc) {
  int32_t sum;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
  return sum;
}

// c += a b, [16, 32] of uint8 by [32, 8] of int8.
__device__ __forceinline__ void mma_us8(IntC& c, const Int8A& a, const Int8B& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c.r[0]), "+r"(c.r[1]), "+r"(c.r[2]), "+r"(c.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
#else
  // PTX ISA, "Matrix Fragments for mma.m8n8k16": a quarter of the larger fragments each.
  for (int half = 0; half < 2; ++half) {
    for (int rows = 0; rows < 2; ++rows) {
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+r"(c.r[2 * rows]), "+r"(c.r[2 * rows + 1])
                   : "r"(a.r[2 * half + rows]), "r"(b.r[half]));
    }
  }
#endif
}

// c += a b, [16, 32] of int8 by [32, 8] of int8.
__device__ __forceinline__ void mma_ss8(IntC& c, const Int8A& a, const Int8B& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c.r[0]), "+r"(c.r[1]), "+r"(c.r[2]), "+r"(c.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
#else
  for (int half = 0; half < 2; ++half) {
    for (int rows = 0; rows < 2; ++rows) {
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+r"(c.r[2 * rows]), "+r"(c.r[2 * rows + 1])
                   : "r"(a.r[2 * half + rows]), "r"(b.r[half]));
    }
  }
#endif
}

// c += a b, [16, 16] by [16, 8], both f16, sums in f32: how these are rounded is the device's.
__device__ __forceinline__ void mma_f16(FloatC& c, const HalfA& a, const HalfB& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
#else
  // PTX ISA, "Matrix Fragments for mma.m16n8k8": the halves along k.
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
        : "r"(a.r[2 * half]), "r"(a.r[2 * half + 1]), "r"(b.r[half]));
  }
#endif
}

// Rounds to nearest, ties to even; overflow gives infinity.
__device__ __forceinline__ uint16_t float_to_half(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

__device__ __forceinline__ float half_to_float(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}

// Two float_to_half: `low` in bits 0-15.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t halves;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
  return halves;
#else
  const uint32_t upper = float_to_half(high);
  return float_to_half(low) | upper << 16;
#endif
}

__device__ __forceinline__ float low_half(uint32_t halves) {
  return half_to_float(static_cast<uint16_t>(halves & 0xffffu));
}

__device__ __forceinline__ float high_half(uint32_t halves) {
  return half_to_float(static_cast<uint16_t>(halves >> 16));
}

// Sums and products of two pairs of halves, each rounded to nearest, ties to even.
__device__ __forceinline__ uint32_t add_halves(uint32_t a, uint32_t b) {
  uint32_t sums;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sums) : "r"(a), "r"(b));
  return sums;
}

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  uint32_t products;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(products) : "r"(a), "r"(b));
  return products;
}

// 2^x, off by up to 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Begins a copy of 16 bytes, both sides aligned to 16. It has arrived for the thread after
// wait_copies(), for others after the barrier that follows.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Closes the thread's group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of the thread's groups but the kPending last ones.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8,
// aligned to 16. Lane l gets word l % 4 of row l / 4 of matrix i in r[i].
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// The same of the transposed matrices [8, 8] of 16-bit elements.
__device__ __forceinline__ void load_matrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// Weights: read once, never written while a kernel runs, kept out of L1. Volatile: a load that is
// written before wait_for_previous() stays before it.
__device__ __forceinline__ uint4 load_streamed(const uint4* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(__cvta_generic_to_global(address)));
  return value;
}

// Until the launch before, in the stream's order, has ended and what it wrote can be read.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the blocks of the next launch start, up to their wait_for_previous().
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void fence() { __threadfence(); }

// Adds one and returns what was there, as one release and acquire: what the block wrote before the
// last sync_block() is read by the thread that draws a later ticket, and, after a sync_block(), by
// its whole block.
__device__ __forceinline__ uint32_t take_ticket(uint32_t* counter) {
  uint32_t ticket;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(ticket)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return ticket;
}

// The first code that is raised stays.
__device__ __forceinline__ void raise_fault(int32_t* fault, int32_t code) {
  atomicCAS(fault, 0, code);
}

}  // namespace llama2q::cuda
