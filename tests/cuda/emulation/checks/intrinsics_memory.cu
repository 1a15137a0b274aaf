// Memory: barriers, shared memory, asynchronous copies, tickets, order of launches.
#include <cuda_runtime.h>

#include "cuda/intrinsics.h"
#include "cuda/launch.h"
#include "harness.h"
#include "intrinsics.h"

namespace checks {

namespace {

using llama2q::cuda::launch;
using llama2q::cuda::Stream;

// y [blocks]: sums of x [blocks, threads].
__global__ void block_sums(const uint32_t* x, uint32_t* y) {
  __shared__ uint32_t parts[8];
  uint32_t sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) sum += llama2q::cuda::shuffle_xor(sum, mask);
  if (llama2q::cuda::lane() == 0) parts[threadIdx.x / 32] = sum;
  llama2q::cuda::sync_block();
  if (threadIdx.x == 0) {
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += parts[w];
    y[blockIdx.x] = sum;
  }
}

// Reverses words [n] of each warp's part through shared memory.
__global__ void reverse(const uint32_t* x, uint32_t* y) {
  auto* shared = reinterpret_cast<uint32_t*>(llama2q::cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  shared[i] = x[i];
  llama2q::cuda::sync_warp();
  y[i] = shared[i ^ 31];
}

// y: x through the last words of the shared memory that was asked for.
__global__ void through_the_end(const uint32_t* x, uint32_t* y, unsigned n_words) {
  auto* shared = reinterpret_cast<uint32_t*>(llama2q::cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  shared[n_words - blockDim.x + i] = x[i];
  llama2q::cuda::sync_block();
  y[i] = shared[n_words - 1 - i];
}

__global__ void copy(const uint4* x, uint4* y) {
  auto* shared = reinterpret_cast<uint4*>(llama2q::cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  llama2q::cuda::copy_async16(&shared[i], &x[i]);
  llama2q::cuda::commit_copies();
  llama2q::cuda::wait_copies<0>();
  llama2q::cuda::sync_block();
  y[i] = shared[blockDim.x - 1 - i];
}

// y [threads]: sums of x [n, threads, 4 words] over n, through three stages of shared memory.
__global__ void pipelined_sums(const uint4* x, uint32_t* y, unsigned n) {
  constexpr unsigned kStages = 3;
  auto* shared = reinterpret_cast<uint4*>(llama2q::cuda::dynamic_shared());
  const unsigned i = threadIdx.x, width = blockDim.x;
  const auto fetch = [&](unsigned step) {
    if (step < n) {
      llama2q::cuda::copy_async16(&shared[step % kStages * width + i], &x[step * width + i]);
    }
    llama2q::cuda::commit_copies();
  };
  for (unsigned step = 0; step < kStages - 1; ++step) fetch(step);
  uint32_t sum = 0;
  for (unsigned step = 0; step < n; ++step) {
    llama2q::cuda::wait_copies<kStages - 2>();
    llama2q::cuda::sync_block();
    const uint4 value = shared[step % kStages * width + (i + 1) % width];
    sum += value.x + value.y + value.z + value.w;
    fetch(step + kStages - 1);
  }
  y[i] = sum;
}

__global__ void stream_through(const uint4* x, uint4* y) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = llama2q::cuda::load_streamed(&x[i]);
}

// The last block to arrive adds up what all wrote, in order, and resets the ticket.
__global__ void sum_by_last(const uint32_t* x, uint32_t* scratch, uint32_t* ticket, uint32_t* y) {
  __shared__ uint32_t drawn;
  llama2q::cuda::wait_for_previous();
  if (threadIdx.x == 1) scratch[blockIdx.x] = x[blockIdx.x] * 3;
  llama2q::cuda::sync_block();
  if (threadIdx.x == 0) drawn = llama2q::cuda::take_ticket(ticket);
  llama2q::cuda::sync_block();
  if (drawn != gridDim.x - 1 || threadIdx.x != 2) return;
  uint32_t hash = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) hash = hash * 31 + scratch[b];
  *y = hash;
  *ticket = 0;
}

__global__ void raise(int32_t* fault) {
  llama2q::cuda::wait_for_previous();
  if (threadIdx.x % 2 == 1) {
    llama2q::cuda::raise_fault(fault, static_cast<int32_t>(threadIdx.x));
  }
}

__global__ void add_and_scale(uint32_t* x) {
  llama2q::cuda::let_next_start();
  llama2q::cuda::wait_for_previous();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  x[i] = x[i] * 3 + i;
  llama2q::cuda::fence();
}

std::vector<uint4> as_vectors(const std::vector<uint32_t>& words) {
  std::vector<uint4> vectors(words.size() / 4);
  std::memcpy(vectors.data(), words.data(), words.size() * sizeof(uint32_t));
  return vectors;
}

void expect_vectors(const std::vector<uint4>& got, const std::vector<uint4>& wanted) {
  expect(got.size() == wanted.size() &&
             std::memcmp(got.data(), wanted.data(), got.size() * sizeof(uint4)) == 0,
         "vectors differ");
}

}  // namespace

void check_barriers() {
  const std::vector<uint32_t> words = random_words(5 * 256);
  std::vector<uint32_t> wanted(5);
  for (size_t i = 0; i < words.size(); ++i) wanted[i / 256] += words[i];
  Buffer<uint32_t> x(words), y(5);
  launch(Stream{}, block_sums, 5, 256, 0, x.data(), y.data());
  expect_equal(y.read(), wanted);
}

void check_dynamic_shared() {
  const std::vector<uint32_t> words = random_words(128);
  std::vector<uint32_t> wanted(128);
  for (size_t i = 0; i < 128; ++i) wanted[i] = words[i ^ 31];
  Buffer<uint32_t> x(words), y(128);
  launch(Stream{}, reverse, 1, 128, 512, x.data(), y.data());
  expect_equal(y.read(), wanted);
}

void check_much_dynamic_shared() {
  const std::vector<uint32_t> words = random_words(128);
  const std::vector<uint32_t> wanted(words.rbegin(), words.rend());
  Buffer<uint32_t> x(words), y(128);
  // 64 KiB: what every device from sm_75 on can give.
  for (const unsigned bytes : {49152u, 49156u, 65536u, 512u}) {
    launch(Stream{}, through_the_end, 1, 128, bytes, x.data(), y.data(), bytes / 4);
    expect_equal(y.read(), wanted);
  }
}

void check_copies() {
  const std::vector<uint4> vectors = as_vectors(random_words(256));
  Buffer<uint4> x(vectors), y(64);
  launch(Stream{}, copy, 1, 64, 1024, x.data(), y.data());
  expect_vectors(y.read(), {vectors.rbegin(), vectors.rend()});
}

void check_copy_pipeline() {
  constexpr size_t n_threads = 64;
  for (const size_t n : {size_t{1}, size_t{2}, size_t{3}, size_t{17}}) {
    const std::vector<uint32_t> words = random_words(n * n_threads * 4);
    std::vector<uint32_t> wanted(n_threads);
    for (size_t i = 0; i < words.size(); ++i) {
      wanted[(i / 4 + n_threads - 1) % n_threads] += words[i];
    }
    Buffer<uint4> x(as_vectors(words));
    Buffer<uint32_t> y(n_threads);
    launch(Stream{}, pipelined_sums, 1, static_cast<unsigned>(n_threads), 3 * n_threads * 16,
           x.data(), y.data(), static_cast<unsigned>(n));
    expect_equal(y.read(), wanted);
  }
}

void check_load_streamed() {
  const std::vector<uint4> vectors = as_vectors(random_words(4 * 192));
  Buffer<uint4> x(vectors), y(192);
  launch(Stream{}, stream_through, 3, 64, 0, x.data(), y.data());
  expect_vectors(y.read(), vectors);
}

void check_tickets() {
  const std::vector<uint32_t> words = random_words(300);
  uint32_t wanted = 0;
  for (const uint32_t word : words) wanted = wanted * 31 + word * 3;
  Buffer<uint32_t> x(words), scratch(300), y(1);
  Buffer<uint32_t> ticket(std::vector<uint32_t>{0});
  for (int round = 0; round < 3; ++round) {
    launch(Stream{}, sum_by_last, 300, 64, 0, x.data(), scratch.data(), ticket.data(), y.data());
    expect_equal(y.read(), {wanted});
    expect_equal(ticket.read(), {0u});
  }
}

void check_faults() {
  Buffer<int32_t> fault(std::vector<int32_t>{0});
  launch(Stream{}, raise, 2, 64, 0, fault.data());
  const int32_t first = fault.read()[0];
  expect(first % 2 == 1 && first < 64, "fault " + std::to_string(first));
  launch(Stream{}, raise, 2, 64, 0, fault.data());
  expect_equal(fault.read(), {first});
}

// Launches of one stream see each other's results, programmatic ones too where the device can.
void check_stream_order() {
  int major = 0;
  llama2q::cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                       "asking for the compute capability");
  for (const bool programmatic : {false, true}) {
    if (programmatic && major < 9) continue;
    Stream stream{nullptr, programmatic};
    llama2q::cuda::check(cudaStreamCreate(&stream.handle), "making a stream");
    std::vector<uint32_t> words = random_words(64 * 256);
    Buffer<uint32_t> x(words);
    for (int step = 0; step < 20; ++step) {
      launch(stream, add_and_scale, 64, 256, 0, x.data());
      for (size_t i = 0; i < words.size(); ++i) words[i] = words[i] * 3 + static_cast<uint32_t>(i);
    }
    llama2q::cuda::check(cudaStreamSynchronize(stream.handle), "waiting");
    expect_equal(x.read(), words);
    llama2q::cuda::check(cudaStreamDestroy(stream.handle), "closing a stream");
  }
}

}  // namespace checks
