// Memory: what is read before it was written is NaN, what is out of place is an error.
#include <cuda_runtime.h>

#include "cuda/intrinsics.h"
#include "emulation.h"
#include "emulation/control.h"

namespace checks {

namespace {

using llama2q::cuda::check;
using llama2q::cuda::launch;
using llama2q::cuda::Stream;

// y [blocks, 3]: what the block finds; then it writes.
template <int kWords>
__global__ void finds(uint32_t* y) {
  __shared__ uint32_t shared[kWords];
  __shared__ uint16_t halves[3];
  auto* dynamic = reinterpret_cast<uint32_t*>(llama2q::cuda::dynamic_shared());
  uint32_t* own = y + 3 * blockIdx.x;
  own[0] = shared[kWords - 1];
  own[1] = halves[2];
  own[2] = dynamic[9];
  shared[kWords - 1] = 1;
  halves[2] = 2;
  dynamic[9] = 3;
}

// Nothing is ever stored, or one value only: no reason to know what is there.
template <typename T>
__global__ void finds_untouched(uint32_t* y) {
  __shared__ T never[3];
  __shared__ bool flag;
  y[0] = static_cast<uint32_t>(never[1]);
  y[1] = reinterpret_cast<const unsigned char&>(flag);
  flag = true;
}

// y: x through shared memory; without wait_copies(), or waiting for the wrong group.
__global__ void copies(const uint4* x, uint4* y, bool waits) {
  auto* shared = reinterpret_cast<uint4*>(llama2q::cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  llama2q::cuda::copy_async16(&shared[i], &x[i]);
  llama2q::cuda::commit_copies();
  if (waits) {
    llama2q::cuda::wait_copies<0>();
  } else {
    llama2q::cuda::wait_copies<1>();
  }
  y[i] = shared[i];
  llama2q::cuda::sync_block();
}

__global__ void copies_from(const unsigned char* x, unsigned char* to, int mistake) {
  unsigned char* shared = llama2q::cuda::dynamic_shared();
  switch (mistake) {
    case 1:
      llama2q::cuda::copy_async16(shared, x + 8);
      break;
    case 2:
      llama2q::cuda::copy_async16(shared + 4, x);
      break;
    case 3:
      llama2q::cuda::copy_async16(to, x);
      break;
    case 4:
      llama2q::cuda::copy_async16(shared + 16, shared);
      break;
    case 5:
      llama2q::cuda::copy_async16(shared + 32, x);
      break;
    default:
      break;
  }
}

__global__ void streams_from(const unsigned char* x, uint4* y) {
  *y = llama2q::cuda::load_streamed(reinterpret_cast<const uint4*>(x));
}

cudaError_t allocate_and_free(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  static_cast<void>(cudaFree(memory));
  return error;
}

}  // namespace

void check_shared_is_nan() {
  std::vector<uint32_t> wanted;
  for (int b = 0; b < 3; ++b) wanted.insert(wanted.end(), {0xffffffffu, 0xffffu, 0xffffffffu});
  for (int round = 0; round < 2; ++round) {
    Buffer<uint32_t> y(9), z(9);
    launch(Stream{}, finds<17>, 3, 1, 40, y.data());
    expect_equal(y.read(), wanted);
    launch(Stream{}, finds<3000>, 3, 1, 80, z.data());
    expect_equal(z.read(), wanted);
    Buffer<uint32_t> untouched(2);
    launch(Stream{}, finds_untouched<uint16_t>, 2, 1, 0, untouched.data());
    expect_equal(untouched.read(), {0xffffu, 0xffu});
  }
}

void check_missing_wait() {
  const std::vector<uint4> values(32, uint4{1, 2, 3, 4});
  Buffer<uint4> x(values), y(32);
  const auto arrived = [&](bool waits) {
    launch(Stream{}, copies, 1, 32, 512, x.data(), y.data(), waits);
    int n = 0;
    for (const uint4& value : y.read()) n += value.y == 2 ? 1 : 0;
    return n;
  };
  cuda_emulation::seed() = 0;
  expect(arrived(true) == 32, "copies arrive");
  expect(arrived(false) == 0, "copies arrive late");
  cuda_emulation::seed() = 1;
  expect(arrived(true) == 32, "copies arrive");
  const int n = arrived(false);
  expect(n > 0 && n < 32, "some copies arrive late");
}

void check_copy_addresses() {
  Buffer<unsigned char> x(64), to(64);
  const auto failing = [&](int mistake) {
    cuda_emulation::reset();
    return error_of([&] { launch(Stream{}, copies_from, 1, 1, 32, x.data(), to.data(), mistake); });
  };
  expect_contains(failing(1), "copy_async16 from or to a misaligned address");
  expect_contains(failing(2), "copy_async16 from or to a misaligned address");
  expect_contains(failing(3), "copy_async16 to memory that is not shared");
  expect_contains(failing(4), "copy_async16 from shared memory");
  expect_contains(failing(5), "copy_async16 to memory that is not shared");
}

void check_streamed_address() {
  Buffer<unsigned char> x(64);
  Buffer<uint4> y(1);
  launch(Stream{}, streams_from, 1, 1, 0, x.data() + 16, y.data());
  const std::string error =
      error_of([&] { launch(Stream{}, streams_from, 1, 1, 0, x.data() + 8, y.data()); });
  expect_contains(error, "load_streamed from a misaligned address");
}

void check_memory_limit() {
  cuda_emulation::machine().memory_bytes = 1 << 20;
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking");
  expect(free_bytes == 1 << 20 && total_bytes == 1 << 20, "all is free");
  expect(allocate_and_free((1 << 20) + 1) == cudaErrorMemoryAllocation, "too much at once");
  expect(cudaGetLastError() == cudaErrorMemoryAllocation, "the error is kept");
  expect(cudaGetLastError() == cudaSuccess, "and forgotten");
  {
    Buffer<unsigned char> half(1 << 19), byte(1);
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking");
    expect(free_bytes == (1 << 19) - 256, "what is held, in units of 256");
    expect(allocate_and_free(1 << 19) == cudaErrorMemoryAllocation, "too much together");
    expect(allocate_and_free(free_bytes) == cudaSuccess, "the rest");
  }
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking");
  expect(free_bytes == 1 << 20, "all is free again");
  expect(allocate_and_free(0) == cudaSuccess, "nothing");
}

void check_memory_is_nan() {
  const Buffer<uint32_t> x(5);
  expect_equal(x.read(), std::vector<uint32_t>(5, 0xffffffffu));
}

void check_copy_directions() {
  Buffer<uint32_t> x(8), y(8);
  uint32_t host[16] = {};
  const auto copy = [](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpy(to, from, bytes, kind);
  };
  expect(copy(x.data(), host, 32, cudaMemcpyHostToDevice) == cudaSuccess, "to the device");
  expect(copy(y.data(), x.data(), 32, cudaMemcpyDeviceToDevice) == cudaSuccess, "on it");
  expect(copy(host, y.data() + 1, 28, cudaMemcpyDefault) == cudaSuccess, "anywhere");
  expect(copy(host, y.data() + 1, 32, cudaMemcpyDeviceToHost) != cudaSuccess, "beyond the end");
  expect(copy(x.data(), host, 36, cudaMemcpyHostToDevice) != cudaSuccess, "beyond the end");
  expect(copy(x.data(), y.data(), 32, cudaMemcpyHostToDevice) != cudaSuccess, "from the device");
  expect(copy(host, host + 8, 32, cudaMemcpyDeviceToHost) != cudaSuccess, "from the host");
  expect(cudaMemset(host, 0, 4) != cudaSuccess, "setting host memory");
  expect(cudaMemset(x.data(), 0x11, 32) == cudaSuccess, "setting");
  expect_equal(x.read(), std::vector<uint32_t>(8, 0x11111111u));
  expect(
      cudaMemcpy2DAsync(y.data(), 12, x.data(), 16, 8, 2, cudaMemcpyDeviceToDevice) == cudaSuccess,
      "rows");
  expect_equal(y.read(), {0x11111111u, 0x11111111u, 0u, 0x11111111u, 0x11111111u, 0u, 0u, 0u});
}

void check_pinning() {
  std::vector<unsigned char> memory(10000);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, 100), "pinned memory");
  check(cudaFreeHost(pinned), "freeing it");
  check(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterDefault), "registering");
  expect(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterDefault) ==
             cudaErrorHostMemoryAlreadyRegistered,
         "twice");
  check(cudaHostUnregister(memory.data()), "unregistering");
  expect(cudaHostUnregister(memory.data()) == cudaErrorHostMemoryNotRegistered, "twice");
  cuda_emulation::machine().pinning = false;
  expect(cudaMallocHost(&pinned, 100) == cudaErrorMemoryAllocation, "refused");
  expect(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterDefault) ==
             cudaErrorMemoryAllocation,
         "refused");
}

}  // namespace checks
