// Mistakes that sanitizers find, one for each name. Each ends the process.
#include <cuda_runtime.h>

#include "cuda/intrinsics.h"
#include "cuda/launch.h"
#include "harness.h"

namespace {

using checks::Buffer;
using llama2q::cuda::launch;
using llama2q::cuda::Stream;

// Thread 3 of block (1, 0, 0) goes wrong.
__device__ bool goes_wrong() { return blockIdx.x == 1 && threadIdx.x == 3; }

template <int kWords>
__global__ void beyond_static_shared(uint32_t* y, unsigned n) {
  __shared__ uint32_t shared[kWords];
  uint32_t* first = shared;
  if (goes_wrong()) first[n] = 1;
  llama2q::cuda::sync_block();
  y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void beyond_dynamic_shared(uint32_t* y, unsigned n) {
  auto* shared = reinterpret_cast<uint32_t*>(llama2q::cuda::dynamic_shared());
  if (goes_wrong()) shared[n] = 1;
  llama2q::cuda::sync_block();
  y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void reads(const uint32_t* x, uint32_t* y, unsigned n) {
  llama2q::cuda::sync_warp();
  if (goes_wrong()) y[0] = x[n];
}

__global__ void beyond_index(uint32_t* y, unsigned n) {
  __shared__ uint32_t shared[4][8];
  if (goes_wrong()) shared[0][n] = 1;
  llama2q::cuda::sync_block();
  y[threadIdx.x] = shared[1][0];
}

__global__ void reads_vector(const uint32_t* x, uint4* y) {
  llama2q::cuda::sync_block();
  if (!goes_wrong()) return;
  y->x = reinterpret_cast<const uint4*>(x + 1)->x;  // clang does not look at copies of the whole
}

__global__ void overflows(const int32_t* x, int32_t* y) {
  llama2q::cuda::sync_block();
  if (goes_wrong()) *y = *x + INT32_MAX;
}

__global__ void beyond_stack(uint32_t* y, unsigned n) {
  uint32_t own[8];
  for (unsigned i = 0; i < 8; ++i) own[i] = llama2q::cuda::shuffle(threadIdx.x, 1);
  uint32_t* first = own;
  if (goes_wrong()) first[n] = 1;
  llama2q::cuda::sync_warp();
  y[threadIdx.x] = own[threadIdx.x % 8];
}

void static_shared() {
  Buffer<uint32_t> y(32);
  launch(Stream{}, beyond_static_shared<32>, 2, 32, 0, y.data(), 32u);
}

void dynamic_shared() {
  Buffer<uint32_t> y(32);
  launch(Stream{}, beyond_dynamic_shared, 2, 32, 128, y.data(), 32u);
}

void index() {
  Buffer<uint32_t> y(32);
  launch(Stream{}, beyond_index, 2, 32, 0, y.data(), 8u);
}

void device_memory() {
  Buffer<uint32_t> x(33), y(1);
  launch(Stream{}, reads, 2, 32, 0, x.data(), y.data(), 33u);
}

void freed_memory() {
  Buffer<uint32_t> y(1);
  uint32_t* x = nullptr;
  {
    Buffer<uint32_t> freed(33);
    x = freed.data();
  }
  launch(Stream{}, reads, 2, 32, 0, x, y.data(), 0u);
}

void misaligned_vector() {
  Buffer<uint32_t> x(33);
  Buffer<uint4> y(1);
  launch(Stream{}, reads_vector, 2, 32, 0, x.data(), y.data());
}

void signed_overflow() {
  Buffer<int32_t> x(std::vector<int32_t>{1}), y(1);
  launch(Stream{}, overflows, 2, 32, 0, x.data(), y.data());
}

void stack() {
  Buffer<uint32_t> y(32);
  launch(Stream{}, beyond_stack, 2, 32, 0, y.data(), 8u);
}

void host_access() {
  Buffer<uint32_t> x(std::vector<uint32_t>{1});
  *x.data() = 2;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  return checks::run(n_arguments, arguments,
                     {
                         {"static_shared", static_shared},
                         {"dynamic_shared", dynamic_shared},
                         {"index", index},
                         {"device_memory", device_memory},
                         {"freed_memory", freed_memory},
                         {"misaligned_vector", misaligned_vector},
                         {"signed_overflow", signed_overflow},
                         {"stack", stack},
                         {"host_access", host_access},
                     });
}
