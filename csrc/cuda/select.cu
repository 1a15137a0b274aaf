// The k largest of each row, by sorting: chunks of a row leave their k largest in scratch, the last
// of them to arrive sorts those. A value and its id make one integer key, so that all keys differ
// and any way to sort gives the same result.
#include <algorithm>

#include "cuda/intrinsics.h"
#include "cuda/select.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = static_cast<int>(kSelectChunk);

// Greater for greater values, of equal ones for lower ids; 0 is below all.
__device__ __forceinline__ uint64_t key_of(float x, int32_t id) {
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 becomes +0
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ascending) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ __forceinline__ int32_t id_of(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key & 0xffffffffu));
}

__device__ __forceinline__ float value_of(uint64_t key) {
  const auto ascending = static_cast<uint32_t>(key >> 32);
  const bool positive = (ascending & 0x80000000u) != 0;
  return __uint_as_float(positive ? ascending & 0x7fffffffu : ~ascending);
}

// Sorts kChunk keys, descending: bitonic.
__device__ void sort_keys(uint64_t (&keys)[kChunk]) {
  for (int run = 2; run <= kChunk; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < kChunk / 2; i += kThreads) {
        const int low = 2 * i - (i & (distance - 1)), high = low + distance;
        const bool descending = (low & run) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == descending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      sync_block();
    }
  }
}

// Brings the largest key to the front.
__device__ void lift_largest(uint64_t (&keys)[kChunk]) {
  for (int n = kChunk / 2; n > 0; n /= 2) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
      keys[i] = keys[i] > keys[i + n] ? keys[i] : keys[i + n];
    }
    sync_block();
  }
}

__device__ void bring_largest(uint64_t (&keys)[kChunk], int k) {
  sync_block();
  if (k == 1) {
    lift_largest(keys);
  } else {
    sort_keys(keys);
  }
}

// Block (x, y): chunk x of row y.
__global__ void __launch_bounds__(kThreads) select_largest(const SelectArgs args) {
  __shared__ uint64_t keys[kChunk];
  __shared__ bool is_last;
  wait_for_previous();
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x), k = static_cast<int>(args.k);
  const int64_t row = blockIdx.y;
  const float* logits = args.logits + row * args.vocab_size;
  const int first = static_cast<int>(blockIdx.x) * kChunk;
  const int n = min(static_cast<int>(args.vocab_size) - first, kChunk);
  for (int i = thread; i < kChunk; i += kThreads) {
    uint64_t key = 0;
    if (i < n) {
      const float x = logits[first + i];
      if (!(x < INFINITY)) raise_fault(args.fault, args.fault_code);
      key = key_of(x, first + i);
    }
    keys[i] = key;
  }
  bring_largest(keys, k);
  uint64_t* candidates = args.scratch + row * gridDim.x * k;
  if (gridDim.x > 1) {
    for (int i = thread; i < k; i += kThreads) candidates[blockIdx.x * args.k + i] = keys[i];
    sync_block();
    if (thread == 0) {
      is_last = take_ticket(args.tickets + row) == gridDim.x - 1;
      if (is_last) args.tickets[row] = 0;
    }
    sync_block();
    if (!is_last) return;
    // The best so far stay in front, as many candidates as there is room for come behind.
    const int n_candidates = static_cast<int>(gridDim.x) * k;
    for (int i = thread; i < k; i += kThreads) keys[i] = 0;
    for (int begin = 0; begin < n_candidates; begin += kChunk - k) {
      for (int i = k + thread; i < kChunk; i += kThreads) {
        const int at = begin + i - k;
        keys[i] = at < n_candidates ? candidates[at] : 0;
      }
      bring_largest(keys, k);
    }
  }
  for (int i = thread; i < k; i += kThreads) {
    args.ids[row * args.k + i] = id_of(keys[i]);
    if (args.values != nullptr) args.values[row * args.k + i] = value_of(keys[i]);
  }
}

int64_t chunks_of(int64_t vocab_size) { return (vocab_size + kChunk - 1) / kChunk; }

}  // namespace

void select(const Stream& stream, const SelectArgs& args) {
  if (args.n_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(chunks_of(args.vocab_size)),
                  static_cast<unsigned>(args.n_rows));
  launch(stream, select_largest, grid, dim3(kThreads), 0, args);
}

}  // namespace llama2q::cuda
