#include <algorithm>

#include "cuda/device.h"
#include "cuda/select.h"

namespace llama2q {
namespace {

using cuda::check;
using cuda::DeviceArray;

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <class T>
size_t bytes_of(int64_t n) {
  return static_cast<size_t>(n) * sizeof(T);
}

// The sizes of a device's buffers, in bytes.
struct Sizes {
  explicit Sizes(const DeviceShape& s) {
    const int64_t kv_dim = s.n_kv_heads * s.head_dim;
    const int64_t context = s.n_ctx_blocks * kBlockSize;
    const int64_t widest = std::max(s.dim, s.hidden_dim);
    rows[static_cast<int>(Rows::kX)] = bytes_of<float>(s.n_tokens * s.dim);
    rows[static_cast<int>(Rows::kQ)] = bytes_of<float>(s.n_tokens * s.dim);
    rows[static_cast<int>(Rows::kAttended)] = bytes_of<float>(s.n_tokens * s.dim);
    rows[static_cast<int>(Rows::kHidden)] = bytes_of<float>(s.n_tokens * s.hidden_dim);
    rows[static_cast<int>(Rows::kOutput)] =
        bytes_of<float>(s.n_rows * std::max(s.vocab_size, s.dim));
    keys = bytes_of<float>(s.n_tokens * kv_dim);
    asked = bytes_of<float>(s.n_rows * s.dim);
    // The smallest group has the most scales.
    matmul_work = static_cast<size_t>(cuda::matmul_work_bytes(s.n_tokens, widest, 32));
    states = bytes_of<float>(cuda::decode_states(s.n_tokens, s.n_heads, s.head_dim, context));
    decode_tickets = cuda::decode_tickets(s.n_tokens, s.n_heads, s.n_kv_heads);
    append_tickets = cuda::append_tickets(s.n_kv_heads);
    const cuda::BatchLayout layout(s.n_tokens, s);
    batch = layout.end(s.n_tokens);
  }

  size_t n_tickets() const { return static_cast<size_t>(decode_tickets + append_tickets); }
  int64_t total() const {
    size_t sum = 2 * keys + asked + matmul_work + states + n_tickets() * sizeof(uint32_t) + batch +
                 2 * cuda::kStagingBytes;
    for (const size_t bytes : rows) sum += bytes;
    // Each array is rounded up by itself.
    return static_cast<int64_t>(sum + 16 * kAlignment);
  }

  size_t rows[kRows], keys, asked, matmul_work, states, batch;
  int64_t decode_tickets, append_tickets;
};

}  // namespace

namespace cuda {

BatchLayout::BatchLayout(int64_t n_tokens, const DeviceShape& shape) {
  const auto n = static_cast<size_t>(n_tokens), half = static_cast<size_t>(shape.head_dim / 2);
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  size_t at = 0;
  const auto take = [&at](size_t bytes) {
    const size_t begin = at;
    at += (bytes + 15) / 16 * 16;
    return begin;
  };
  fault = take(sizeof(int32_t));
  token_ids = take(n * sizeof(int32_t));
  positions = take(n * sizeof(int32_t));
  sequence_of_token = take(n * sizeof(int32_t));
  output_rows = take(n * sizeof(int32_t));
  cos = take(n * half * sizeof(float));
  sin = take(n * half * sizeof(float));
  tiles = take(static_cast<size_t>(most_prefill_tiles(n_tokens, group)) * sizeof(PrefillTile));
  tables = at;
  table_bytes = static_cast<size_t>(shape.n_ctx_blocks) * sizeof(int32_t);
}

}  // namespace cuda

int64_t device_work_bytes(const DeviceShape& shape) { return Sizes(shape).total(); }

Device::Device(int32_t number, const DeviceShape& sizes)
    : index(number), shape(sizes), layout(0, sizes) {
  use();
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  limits = {.n_multiprocessors = properties.multiProcessorCount,
            .shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  check(cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking), "making a stream");
  stream.programmatic = properties.major >= 9;
  for (cudaEvent_t& event : staged) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  }
  const Sizes bytes(shape);
  for (int i = 0; i < kRows; ++i) rows[i] = DeviceArray(bytes.rows[i]);
  keys = DeviceArray(bytes.keys);
  values = DeviceArray(bytes.keys);
  asked = DeviceArray(bytes.asked);
  matmul_work = DeviceArray(bytes.matmul_work);
  states = DeviceArray(bytes.states);
  tickets = DeviceArray(bytes.n_tickets() * sizeof(uint32_t));
  check(cudaMemsetAsync(tickets.as(), 0, bytes.n_tickets() * sizeof(uint32_t), stream.handle),
        "clearing tickets");
  batch = DeviceArray(bytes.batch);
  batch_staging = std::make_unique<cuda::StagingArray>(bytes.batch);
  for (int i = 0; i < 2; ++i) {
    raw[i] = DeviceArray(cuda::kStagingBytes);
    staging[i] = std::make_unique<cuda::StagingArray>(cuda::kStagingBytes);
  }
  if (!batch_staging->is_pinned() || !staging[0]->is_pinned() || !staging[1]->is_pinned()) {
    note = "the system refuses to pin memory (ulimit -l): copies to the GPU are slower";
  }
}

Device::~Device() {
  static_cast<void>(cudaSetDevice(index));
  if (stream.handle != nullptr) static_cast<void>(cudaStreamSynchronize(stream.handle));
  graphs.clear();
  for (const cudaEvent_t event : staged) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }
  if (stream.handle != nullptr) static_cast<void>(cudaStreamDestroy(stream.handle));
}

void Device::use() const { check(cudaSetDevice(index), "choosing the GPU"); }

void Device::settle() {
  use();
  if (is_recording) {
    is_recording = false;
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(stream.handle, &graph) == cudaSuccess && graph != nullptr) {
      static_cast<void>(cudaGraphDestroy(graph));
    }
    static_cast<void>(cudaGetLastError());
  }
  check(cudaStreamSynchronize(stream.handle), "waiting for the GPU");
}

cuda::TokenView Device::tokens() const {
  return {.n_tokens = n_tokens,
          .positions = batch_array<int32_t>(layout.positions),
          .sequence_of_token = batch_array<int32_t>(layout.sequence_of_token),
          .block_tables = batch_array<int32_t>(layout.tables),
          .max_blocks = shape.n_ctx_blocks};
}

cuda::FaultSite Device::fault_at(int64_t layer, DeviceOp op) const {
  return {batch_array<int32_t>(layout.fault),
          static_cast<int32_t>(1 + layer * kDeviceOps + static_cast<int64_t>(op))};
}

// Few sizes, so that few recordings serve all lengths.
int64_t Device::context() const {
  int64_t context = 4 * kBlockSize;
  while (context < most_positions) context *= 2;
  return std::min(context, shape.n_ctx_blocks * kBlockSize);
}

}  // namespace llama2q
