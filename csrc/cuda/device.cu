#include <algorithm>

#include "cuda/device.h"

namespace llama2q {
namespace {

using cuda::check;
using cuda::DeviceArray;

// Tickets are 0 at first, and after each launch.
DeviceArray make_tickets(size_t bytes, cudaStream_t stream) {
  DeviceArray tickets(bytes);
  check(cudaMemsetAsync(tickets.as(), 0, bytes, stream), "clearing tickets");
  return tickets;
}

}  // namespace

Device::Device(int32_t number, const DeviceShape& sizes)
    : index(number), shape(sizes), layout(0, sizes) {
  use();
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  limits = {.n_multiprocessors = properties.multiProcessorCount,
            .shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  check(cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking), "making a stream");
  overlaps = stream.programmatic = properties.major >= 9;
  check(cudaStreamCreateWithFlags(&copies.handle, cudaStreamNonBlocking), "making a stream");
  for_each_event([](cudaEvent_t& event) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  });
  const cuda::WorkSizes bytes(shape, limits);
  for (int i = 0; i < kRows; ++i) rows[i] = DeviceArray(bytes.rows[i]);
  keys = DeviceArray(bytes.keys);
  values = DeviceArray(bytes.keys);
  asked = DeviceArray(bytes.asked);
  matmul_work = DeviceArray(bytes.matmul);
  matmul_tickets = make_tickets(bytes.matmul_tickets, stream.handle);
  states = DeviceArray(bytes.states);
  decode_tickets = make_tickets(bytes.decode_tickets, stream.handle);
  select_keys = DeviceArray(bytes.select_keys);
  select_tickets = make_tickets(bytes.select_tickets, stream.handle);
  values_of = DeviceArray(bytes.selected);
  ids_of = DeviceArray(bytes.selected);
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
  for (const cuda::Stream& queue : {copies, stream}) {
    if (queue.handle != nullptr) static_cast<void>(cudaStreamSynchronize(queue.handle));
  }
  graphs.clear();
  for_each_event([](cudaEvent_t& event) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  });
  for (const cuda::Stream& queue : {copies, stream}) {
    if (queue.handle != nullptr) static_cast<void>(cudaStreamDestroy(queue.handle));
  }
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
  check(cudaStreamSynchronize(copies.handle), "waiting for the GPU");
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
