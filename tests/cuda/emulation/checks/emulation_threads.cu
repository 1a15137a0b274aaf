// Threads: divergence is an error that says where, and the order of fibers is drawn.
#include <cuda_runtime.h>

#include <set>

#include "cuda/intrinsics.h"
#include "emulation.h"
#include "emulation/control.h"

namespace checks {

namespace {

using llama2q::cuda::lane;
using llama2q::cuda::launch;
using llama2q::cuda::Stream;

__global__ void one_lane_ends(int32_t* y) {
  if (blockIdx.x == 1 && threadIdx.x == 40) return;
  y[threadIdx.x] = llama2q::cuda::shuffle_xor(static_cast<int32_t>(threadIdx.x), 1);
}

__global__ void two_operations() {
  if (lane() < 7) {
    llama2q::cuda::sync_warp();
  } else {
    llama2q::cuda::sync_block();
  }
}

__global__ void two_lines(float* y) {
  float value = 1.0f;
  if (threadIdx.x % 2 == 0) {
    value = llama2q::cuda::shuffle_xor(value, 2);
  } else {
    value = llama2q::cuda::shuffle_xor(value + 1.0f, 2);
  }
  y[threadIdx.x] = value;
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    llama2q::cuda::sync_block();
  } else {
    llama2q::cuda::sync_block();
  }
}

__global__ void shuffle_all(uint32_t* y) {
  y[threadIdx.x] = llama2q::cuda::shuffle(threadIdx.x, 0);
}

__global__ void half_ends(uint32_t* y) {
  __shared__ uint32_t shared[32];
  if (threadIdx.x >= 32) return;
  shared[threadIdx.x] = threadIdx.x;
  llama2q::cuda::sync_block();
  y[threadIdx.x] = shared[31 - threadIdx.x];
}

__global__ void positions(uint3* threads, uint3* blocks, dim3* extents) {
  const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned i = b * blockDim.x * blockDim.y * blockDim.z + t;
  llama2q::cuda::sync_block();
  threads[i] = threadIdx;
  blocks[i] = blockIdx;
  extents[0] = blockDim;
  extents[1] = gridDim;
}

// Without the barrier between writing and reading.
__global__ void races(uint32_t* y) {
  __shared__ uint32_t shared[64];
  shared[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = shared[(threadIdx.x + 33) % 64];
}

// Blocks meet in memory without a ticket.
__global__ void races_between_blocks(uint32_t* last) { *last = blockIdx.x; }

__global__ void sound(const float* x, float* y, uint32_t* scratch, uint32_t* ticket) {
  __shared__ float parts[4];
  __shared__ uint32_t drawn;
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) sum += llama2q::cuda::shuffle_xor(sum, mask);
  if (lane() == 0) parts[threadIdx.x / 32] = sum;
  llama2q::cuda::sync_block();
  if (threadIdx.x == 0) {
    scratch[blockIdx.x] = __float_as_uint(parts[0] + parts[1] + parts[2] + parts[3]);
    drawn = llama2q::cuda::take_ticket(ticket);
  }
  llama2q::cuda::sync_block();
  if (drawn != gridDim.x - 1 || threadIdx.x > 0) return;
  float total = 0.0f;
  for (unsigned b = 0; b < gridDim.x; ++b) total += __uint_as_float(scratch[b]);
  *y = total;
  *ticket = 0;
}

__global__ void load_rows(const unsigned char* global, int mistake, uint32_t* y) {
  unsigned char* row = llama2q::cuda::dynamic_shared() + 16 * threadIdx.x;
  const void* from = row;
  if (threadIdx.x == 5 && mistake == 1) from = row + 4;
  if (threadIdx.x == 5 && mistake == 2) from = global;
  uint32_t r[4];
  llama2q::cuda::load_matrix_x4(r, from);
  y[threadIdx.x] = r[0];
}

}  // namespace

void check_ended_lane() {
  Buffer<int32_t> y(64);
  const std::string error = error_of([&] { launch(Stream{}, one_lane_ends, 2, 64, 0, y.data()); });
  expect_contains(error,
                  "kernel checks::(anonymous namespace)::one_lane_ends, block (1, 0, 0), "
                  "thread (40, 0, 0): the warp has diverged: thread (40, 0, 0) has ended, "
                  "thread (32, 0, 0) is at shuffle_xor (emulation_threads.cu:");
}

void check_lanes_at_different_operations() {
  const std::string error = error_of([] { launch(Stream{}, two_operations, 1, 32, 0); });
  expect_contains(error, "thread (7, 0, 0) is at sync_block (emulation_threads.cu:");
  expect_contains(error, "thread (0, 0, 0) is at sync_warp (emulation_threads.cu:");
}

void check_lanes_at_different_lines() {
  Buffer<float> y(32);
  const std::string error = error_of([&] { launch(Stream{}, two_lines, 1, 32, 0, y.data()); });
  expect_contains(error, "the warp has diverged: thread (1, 0, 0) is at shuffle_xor");
}

void check_warps_at_different_barriers() {
  const std::string error = error_of([] { launch(Stream{}, two_barriers, 1, 64, 0); });
  expect_contains(error, "the block has diverged: thread (32, 0, 0) is at sync_block");
}

void check_partial_warp() {
  Buffer<uint32_t> y(64);
  launch(Stream{}, shuffle_all, 1, 64, 0, y.data());
  const std::string error = error_of([&] { launch(Stream{}, shuffle_all, 1, 40, 0, y.data()); });
  expect_contains(error, "thread (32, 0, 0): shuffle (");
  expect_contains(error, "in a warp of 8 threads");
}

void check_early_exit() {
  Buffer<uint32_t> y(32);
  launch(Stream{}, half_ends, 3, 96, 0, y.data());
  for (uint32_t i = 0; i < 32; ++i) expect(y.read()[i] == 31 - i, "a value");
}

void check_built_in_variables() {
  const dim3 grid(3, 2, 2), block(4, 3, 5);
  const size_t n = 12 * 60;
  for (const uint64_t seed : {0, 5}) {
    cuda_emulation::seed() = seed;
    Buffer<uint3> threads(n), blocks(n);
    Buffer<dim3> extents(2);
    launch(Stream{}, positions, grid, block, 0, threads.data(), blocks.data(), extents.data());
    const auto got_threads = threads.read(), got_blocks = blocks.read();
    for (unsigned i = 0; i < n; ++i) {
      const unsigned t = i % 60, b = i / 60;
      const uint3 thread = got_threads[i], at = got_blocks[i];
      expect(thread.x == t % 4 && thread.y == t / 4 % 3 && thread.z == t / 12, "a thread");
      expect(at.x == b % 3 && at.y == b / 3 % 2 && at.z == b / 6, "a block");
    }
    const auto got = extents.read();
    expect(std::memcmp(&got[0], &block, sizeof block) == 0, "the block's extent");
    expect(std::memcmp(&got[1], &grid, sizeof grid) == 0, "the grid's extent");
  }
}

void check_order_matters() {
  std::set<std::vector<uint32_t>> results;
  std::set<uint32_t> last_blocks;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    cuda_emulation::seed() = seed;
    Buffer<uint32_t> y(64), last(1);
    launch(Stream{}, races, 1, 64, 0, y.data());
    results.insert(y.read());
    launch(Stream{}, races_between_blocks, 10, 32, 0, last.data());
    last_blocks.insert(last.read()[0]);
  }
  expect(results.size() > 4, std::to_string(results.size()) + " results of a race");
  expect(last_blocks.size() > 3, std::to_string(last_blocks.size()) + " last blocks");
}

void check_order_of_sound_kernels() {
  std::vector<float> values(50 * 128);
  for (float& value : values) value = static_cast<float>(random_int(-1000000, 1000000)) * 1e-3f;
  Buffer<float> x(values), y(1);
  Buffer<uint32_t> scratch(50), ticket(std::vector<uint32_t>{0});
  std::vector<float> first;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    cuda_emulation::seed() = seed;
    launch(Stream{}, sound, 50, 128, 0, x.data(), y.data(), scratch.data(), ticket.data());
    if (seed == 0) first = y.read();
    expect_equal(y.read(), first);
  }
}

void check_matrix_rows() {
  Buffer<unsigned char> global(64);
  Buffer<uint32_t> y(32);
  launch(Stream{}, load_rows, 1, 32, 512, global.data(), 0, y.data());
  const auto failing = [&](int mistake) {
    cuda_emulation::reset();
    return error_of(
        [&] { launch(Stream{}, load_rows, 1, 32, 512, global.data(), mistake, y.data()); });
  };
  expect_contains(failing(1), "thread (5, 0, 0): load_matrix_x4 of a misaligned row");
  expect_contains(failing(2), "thread (5, 0, 0): load_matrix_x4 of a row outside shared memory");
}

}  // namespace checks
