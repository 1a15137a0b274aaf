// Each function of csrc/cuda/intrinsics.h in a kernel of its own, to look at its instructions:
// tests/cuda/test_intrinsics.py.
#include "cuda/intrinsics.h"

using namespace llama2q::cuda;

extern "C" {

__global__ void use_lane(int* y) { y[threadIdx.x] = lane(); }

__global__ void use_shuffle_xor(float* y) { y[threadIdx.x] = shuffle_xor(y[threadIdx.x], 5); }

__global__ void use_shuffle(int* y) {
  y[threadIdx.x] = shuffle(y[threadIdx.x], y[threadIdx.x + 32]);
}

__global__ void use_sync_block(int* y) {
  __shared__ int shared[64];
  shared[threadIdx.x] = y[threadIdx.x];
  sync_block();
  y[threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void use_permute_bytes(uint32_t* y) {
  y[threadIdx.x] = permute_bytes(y[threadIdx.x], y[threadIdx.x + 32], y[threadIdx.x + 64]);
}

__global__ void use_dot4(uint32_t* y, int* z) {
  z[threadIdx.x] = dot4(y[threadIdx.x], y[threadIdx.x + 32], z[threadIdx.x]);
}

__global__ void use_dot4_us(uint32_t* y, int* z) {
  z[threadIdx.x] = dot4_us(y[threadIdx.x], y[threadIdx.x + 32], z[threadIdx.x]);
}

__global__ void use_mma_us8(IntC* c, const Int8A* a, const Int8B* b) {
  IntC acc = c[threadIdx.x];
  mma_us8(acc, a[threadIdx.x], b[threadIdx.x]);
  c[threadIdx.x] = acc;
}

__global__ void use_mma_ss8(IntC* c, const Int8A* a, const Int8B* b) {
  IntC acc = c[threadIdx.x];
  mma_ss8(acc, a[threadIdx.x], b[threadIdx.x]);
  c[threadIdx.x] = acc;
}

__global__ void use_mma_f16(FloatC* c, const HalfA* a, const HalfB* b) {
  FloatC acc = c[threadIdx.x];
  mma_f16(acc, a[threadIdx.x], b[threadIdx.x]);
  c[threadIdx.x] = acc;
}

__global__ void use_float_to_half(uint16_t* y, const float* x) {
  y[threadIdx.x] = float_to_half(x[threadIdx.x]);
}

__global__ void use_half_to_float(float* y, const uint16_t* x) {
  y[threadIdx.x] = half_to_float(x[threadIdx.x]);
}

__global__ void use_pack_halves(uint32_t* y, const float* x) {
  y[threadIdx.x] = pack_halves(x[threadIdx.x], x[threadIdx.x + 32]);
}

__global__ void use_halves(float* y, const uint32_t* x) {
  y[threadIdx.x] = low_half(x[threadIdx.x]) * high_half(x[threadIdx.x]);
}

__global__ void use_add_halves(uint32_t* y, const uint32_t* x) {
  y[threadIdx.x] = add_halves(x[threadIdx.x], x[threadIdx.x + 32]);
}

__global__ void use_multiply_halves(uint32_t* y, const uint32_t* x) {
  y[threadIdx.x] = multiply_halves(x[threadIdx.x], x[threadIdx.x + 32]);
}

__global__ void use_exp2_approximate(float* y, const float* x) {
  y[threadIdx.x] = exp2_approximate(x[threadIdx.x]);
}

__global__ void use_copies(float* y, const float* x) {
  unsigned char* shared = dynamic_shared();
  copy_async16(shared + 16 * threadIdx.x, x + 4 * threadIdx.x);
  commit_copies();
  wait_copies<1>();
  wait_copies<0>();
  sync_block();
  y[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];
}

__global__ void use_load_matrix_x4(uint4* y) {
  uint32_t r[4];
  load_matrix_x4(r, dynamic_shared() + 16 * threadIdx.x);
  y[threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
}

__global__ void use_load_matrix_x4_trans(uint4* y) {
  uint32_t r[4];
  load_matrix_x4_trans(r, dynamic_shared() + 16 * threadIdx.x);
  y[threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
}

__global__ void use_load_streamed(uint4* y, const uint4* x) {
  const uint4 value = load_streamed(x + threadIdx.x);
  let_next_start();
  wait_for_previous();
  y[threadIdx.x] = value;
}

__global__ void use_take_ticket(uint32_t* y) { y[threadIdx.x + 1] = take_ticket(y); }

__global__ void use_fence(int* y) {
  y[0] = 1;
  fence();
  y[1] = 2;
}

__global__ void use_raise_fault(int32_t* y) { raise_fault(y, 7); }

}  // extern "C"
