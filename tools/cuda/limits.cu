// What a GPU can do at most: the denominators of the benchmarks. Rows {"limit", ...}.
//
//   cuda_limits [--seconds S] [--megabytes N]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "cuda/intrinsics.h"
#include "cuda/layout.h"
#include "measure.h"

namespace {

using namespace llama2q::cuda;
using bench::Machine;
using bench::Memory;
using bench::Row;
using bench::Settings;
using bench::Times;

// Reads n words, all threads side by side, kUnroll loads of a thread at a time. Block: any.
template <int kUnroll>
__global__ void read_words(const uint4* words, int64_t n, uint32_t* sink) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  uint32_t sum = 0;
  for (; i + (kUnroll - 1) * stride < n; i += kUnroll * stride) {
    uint4 word[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) word[u] = load_streamed(words + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum ^= word[u].x ^ word[u].y ^ word[u].z ^ word[u].w;
  }
  for (; i < n; i += stride) {
    const uint4 word = load_streamed(words + i);
    sum ^= word.x ^ word.y ^ word.z ^ word.w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // as good as never, but the loads are needed
}

__device__ __forceinline__ uint32_t scramble(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// kChains independent products of each warp, operands in registers.
template <int kChains>
__global__ void multiply_int8(int rounds, uint32_t* sink) {
  Int8A a;
  Int8B b;
  IntC c[kChains];
  const uint32_t seed = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32_t i = 0; i < 4; ++i) a.r[i] = scramble(8 * seed + i);
  for (uint32_t i = 0; i < 2; ++i) b.r[i] = scramble(8 * seed + 4 + i);
  for (int chain = 0; chain < kChains; ++chain) c[chain] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) mma_us8(c[chain], a, b);
  }
  uint32_t sum = 0;
  for (int chain = 0; chain < kChains; ++chain) {
    for (const int32_t value : c[chain].r) sum ^= static_cast<uint32_t>(value);
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

// The same in f16 with sums in f32; the factors' magnitudes are below 2^-7.
template <int kChains>
__global__ void multiply_f16(int rounds, uint32_t* sink) {
  constexpr uint32_t kSmall = 0x9fff9fffu;
  HalfA a;
  HalfB b;
  FloatC c[kChains];
  const uint32_t seed = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32_t i = 0; i < 4; ++i) a.r[i] = scramble(8 * seed + i) & kSmall;
  for (uint32_t i = 0; i < 2; ++i) b.r[i] = scramble(8 * seed + 4 + i) & kSmall;
  for (int chain = 0; chain < kChains; ++chain) c[chain] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) mma_f16(c[chain], a, b);
  }
  float sum = 0;
  for (int chain = 0; chain < kChains; ++chain) {
    for (const float value : c[chain].r) sum += value;
  }
  if (sum == 12345.678f) *sink = 1;
}

__global__ void do_nothing() {
  wait_for_previous();
  let_next_start();
}

// Launches wait for each other to end, unless a row says that they overlap.
Stream serial(const Machine& machine) { return {machine.stream.handle, false}; }

struct ReadShape {
  int blocks_per_multiprocessor, threads, unroll;
};
constexpr ReadShape kReadShapes[] = {{1, 1024, 8}, {2, 512, 8},  {2, 1024, 4}, {4, 512, 4},
                                     {4, 256, 8},  {8, 256, 4},  {8, 256, 8},  {16, 128, 8},
                                     {16, 256, 4}, {32, 256, 4}, {64, 256, 2}};

void queue_read(const Stream& stream, const Machine& machine, const ReadShape& shape,
                const uint4* words, int64_t n, uint32_t* sink) {
  const auto blocks = static_cast<unsigned>(shape.blocks_per_multiprocessor *
                                            machine.properties.multiProcessorCount);
  const dim3 grid(blocks), block(static_cast<unsigned>(shape.threads));
  auto* const kernel = shape.unroll == 8   ? read_words<8>
                       : shape.unroll == 4 ? read_words<4>
                                           : read_words<2>;
  launch(stream, kernel, grid, block, 0, words, n, sink);
}

// Pieces of `bytes` of the memory, one launch each: the shape of launch that reads them fastest.
void measure_reads(const Settings& settings, const Machine& machine, const Memory& memory,
                   int64_t memory_bytes, int64_t bytes, uint32_t* sink) {
  const int64_t n = bytes / int64_t{sizeof(uint4)};
  const int n_pieces = static_cast<int>(std::max<int64_t>(memory_bytes / bytes, 1));
  Times best;
  ReadShape way{};
  for (const ReadShape& shape : kReadShapes) {
    const auto queue = [&](const Stream& stream, int i) {
      queue_read(stream, machine, shape, memory.as<uint4>() + i % n_pieces * n, n, sink);
    };
    const double guess = static_cast<double>(bytes) / 4e6;
    const Times times = time_chain(settings, serial(machine), 2, guess, queue);
    if (best.samples == 0 || times.median < best.median) {
      best = times;
      way = shape;
    }
  }
  char shape[96];
  std::snprintf(shape, sizeof shape, "%d blocks of %d threads a multiprocessor, %d loads at a time",
                way.blocks_per_multiprocessor, way.threads, way.unroll);
  Row()
      .text("limit", "read")
      .number("bytes", static_cast<double>(n) * sizeof(uint4))
      .times(best)
      .number("per_second", static_cast<double>(n) * sizeof(uint4) / best.median * 1e6)
      .text("way", shape)
      .print();
}

void measure_products(const Settings& settings, const Machine& machine, bool is_int8, int rounds,
                      uint32_t* sink) {
  Times best;
  double best_rate = 0;
  int best_blocks = 0, best_chains = 0;
  for (const int blocks : {1, 2, 4}) {
    for (const int chains : {4, 8}) {
      const auto queue = [&](const Stream& stream, int) {
        auto* const kernel = is_int8 ? (chains == 8 ? multiply_int8<8> : multiply_int8<4>)
                                     : (chains == 8 ? multiply_f16<8> : multiply_f16<4>);
        const auto grid = static_cast<unsigned>(blocks * machine.properties.multiProcessorCount);
        launch(stream, kernel, dim3(grid), dim3(256), 0, rounds, sink);
      };
      const double ops = 2.0 * 16 * 8 * (is_int8 ? 32 : 16) * chains * rounds * 8 * blocks *
                         machine.properties.multiProcessorCount;
      const Times times = time_chain(settings, serial(machine), 1, ops / 5e8, queue);
      if (ops / times.median > best_rate || best.samples == 0) {
        best_rate = ops / times.median;
        best = times;
        best_blocks = blocks;
        best_chains = chains;
      }
    }
  }
  const std::string way = std::to_string(best_blocks) + " blocks of 8 warps a multiprocessor, " +
                          std::to_string(best_chains) + " products of a warp side by side";
  Row()
      .text("limit", is_int8 ? "int8 mma" : "f16 mma")
      .times(best)
      .number("per_second", best_rate * 1e6)
      .text("way", way)
      .print();
}

void measure_launches(const Settings& settings, const Machine& machine) {
  for (const bool overlaps : {false, true}) {
    if (overlaps && !machine.stream.programmatic) continue;
    const Stream stream{machine.stream.handle, overlaps};
    const Times times = time_chain(settings, stream, 64, 2.0, [](const Stream& on, int) {
      launch(on, do_nothing, dim3(132), dim3(256), 0);
    });
    Row()
        .text("limit", overlaps ? "empty launch, overlapping" : "empty launch")
        .times(times)
        .print();
  }
}

struct HostMemory {
  HostMemory(size_t bytes, bool is_pinned) : pinned(is_pinned) {
    if (pinned) {
      check(cudaMallocHost(&data, bytes), "pinning memory");
    } else {
      data = std::malloc(bytes);
      if (data == nullptr) throw std::bad_alloc();
    }
    std::memset(data, 1, bytes);
  }
  ~HostMemory() {
    if (pinned) {
      static_cast<void>(cudaFreeHost(data));
    } else {
      std::free(data);
    }
  }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  void* data = nullptr;
  bool pinned;
};

// A copy and the wait for it, as the host sees it.
void measure_copies(const Machine& machine, const Memory& memory, int64_t bytes, bool to_device,
                    bool pinned, double seconds) {
  const HostMemory host(static_cast<size_t>(bytes), pinned);
  std::vector<double> samples;
  double total = 0;
  for (int i = 0; i < 3 || (total < seconds && i < 1000); ++i) {
    const auto started = std::chrono::steady_clock::now();
    check(cudaMemcpyAsync(to_device ? memory.as() : host.data, to_device ? host.data : memory.as(),
                          static_cast<size_t>(bytes),
                          to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
                          machine.stream.handle),
          "copying");
    check(cudaStreamSynchronize(machine.stream.handle), "copying");
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    total += took.count();
    if (i > 0) samples.push_back(took.count());
  }
  std::sort(samples.begin(), samples.end());
  const double median = samples[samples.size() / 2];
  Row()
      .text("limit", std::string("copy ") + (to_device ? "to" : "from") + " the device, " +
                         (pinned ? "pinned" : "pageable"))
      .number("bytes", static_cast<double>(bytes))
      .number("us", 1e6 * median)
      .number("per_second", static_cast<double>(bytes) / median)
      .print();
}

}  // namespace

int main(int n_arguments, char** arguments) {
  Settings settings{.seconds = 0.03, .least_samples = 5};
  int64_t megabytes = 4096;
  for (int i = 1; i + 1 < n_arguments; i += 2) {
    const std::string name = arguments[i];
    if (name == "--seconds") settings.seconds = std::atof(arguments[i + 1]);
    if (name == "--megabytes") megabytes = std::atoll(arguments[i + 1]);
  }
  const bool is_tiny = megabytes < 64;
  if (is_tiny) settings = {.seconds = 0, .least_samples = 1, .chain_seconds = 0};
  return bench::guarded(
             "limits",
             [&] {
               const Machine machine;
               Row()
                   .text("limit", "device")
                   .text("name", machine.properties.name)
                   .number("multiprocessors", machine.properties.multiProcessorCount)
                   .number("l2_bytes", machine.properties.l2CacheSize)
                   .number("capability", machine.properties.major + 0.1 * machine.properties.minor)
                   .print();
               const int64_t bytes = megabytes << 20;
               const Memory memory(bytes), sink(256);
               bench::fill(memory.as(), bytes, bench::random_bytes());
               for (const int64_t piece :
                    {int64_t{9} << 20, int64_t{48} << 20, int64_t{256} << 20, bytes}) {
                 if (piece <= bytes) {
                   measure_reads(settings, machine, memory, bytes, piece, sink.as<uint32_t>());
                 }
               }
               const int rounds = is_tiny ? 2 : 4096;
               measure_products(settings, machine, true, rounds, sink.as<uint32_t>());
               measure_products(settings, machine, false, rounds, sink.as<uint32_t>());
               measure_launches(settings, machine);
               const int64_t most = is_tiny ? 4096 : int64_t{256} << 20;
               for (const int64_t copied : {int64_t{16384}, int64_t{32768}, most}) {
                 for (const bool to_device : {true, false}) {
                   for (const bool pinned : {true, false}) {
                     measure_copies(machine, memory, std::min(copied, bytes), to_device, pinned,
                                    is_tiny ? 0 : 0.1);
                   }
                 }
               }
             })
             ? 0
             : 1;
}
