// A pass: its batch, and its recording.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/device.h"
#include "cuda/pass.h"

namespace llama2q {
namespace cuda {

Graph::Graph(cudaGraph_t graph) {
  const cudaError_t error = cudaGraphInstantiate(&handle_, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check(error, "making a graph of a pass");
}

Graph::~Graph() {
  if (handle_ != nullptr) static_cast<void>(cudaGraphExecDestroy(handle_));
}

void Graph::queue(cudaStream_t stream) const {
  check(cudaGraphLaunch(handle_, stream), "starting a recorded pass");
}

}  // namespace cuda

namespace {

using cuda::check;

// Tokens of a sequence stand together: tables of those that the batch has, in the order in which
// they come, one behind the other.
int64_t pack_tables(const DeviceBatch& from, const Device& device, char* staging) {
  auto* sequences = reinterpret_cast<int32_t*>(staging + device.layout.sequence_of_token);
  int64_t n = 0;
  for (int64_t t = 0; t < from.n_tokens; ++t) {
    const int32_t sequence = from.sequence_of_token[t];
    if (t == 0 || sequence != from.sequence_of_token[t - 1]) {
      auto* table = reinterpret_cast<int32_t*>(staging + device.layout.tables +
                                               device.layout.table_bytes * static_cast<size_t>(n));
      const int64_t width = std::min(from.max_blocks, device.shape.n_ctx_blocks);
      std::copy_n(from.block_tables + sequence * from.max_blocks, width, table);
      ++n;
    }
    sequences[t] = static_cast<int32_t>(n - 1);
  }
  return n;
}

// Recordings depend on how many positions their launches cover as well.
uint64_t whole_key(const Device& device, uint64_t key) {
  return key * 64 + static_cast<uint64_t>(
                        __builtin_ctzll(static_cast<uint64_t>(device.context() / kBlockSize)) +
                        (device.context() == device.shape.n_ctx_blocks * kBlockSize ? 32 : 0));
}

}  // namespace

void begin_pass(Device& device, const DeviceBatch& from) {
  if (from.n_tokens > device.shape.n_tokens || from.n_rows > device.shape.n_rows) {
    throw std::invalid_argument(
        "a pass of " + std::to_string(from.n_tokens) + " tokens and " +
        std::to_string(from.n_rows) + " outputs; the device was opened for " +
        std::to_string(device.shape.n_tokens) + " and " + std::to_string(device.shape.n_rows));
  }
  device.settle();
  device.stream.programmatic = device.overlaps;
  device.n_tokens = from.n_tokens;
  device.n_rows = from.n_rows;
  device.layout = cuda::BatchLayout(std::max<int64_t>(from.n_tokens, 1), device.shape);
  const cuda::BatchLayout& at = device.layout;
  char* staging = device.batch_staging->data();
  const auto put = [&](size_t offset, const auto* values, int64_t n) {
    if (values != nullptr) {
      std::memcpy(staging + offset, values, static_cast<size_t>(n) * sizeof *values);
    }
  };
  const int64_t n = from.n_tokens, half = device.shape.head_dim / 2;
  std::memset(staging + at.fault, 0, sizeof(int32_t));
  put(at.token_ids, from.token_ids, n);
  put(at.output_rows, from.output_rows, from.n_rows);
  int64_t n_sequences = 0;
  device.most_positions = device.n_tiles = 0;
  if (from.positions != nullptr) {
    put(at.positions, from.positions, n);
    put(at.cos, from.cos, n * half);
    put(at.sin, from.sin, n * half);
    n_sequences = pack_tables(from, device, staging);
    for (int64_t t = 0; t < n; ++t) {
      device.most_positions = std::max<int64_t>(device.most_positions, from.positions[t] + 1);
    }
    auto* tiles = reinterpret_cast<cuda::PrefillTile*>(staging + at.tiles);
    device.n_tiles = cuda::cut_prefill_tiles(from.positions, from.sequence_of_token, n,
                                             device.shape.n_heads / device.shape.n_kv_heads, tiles);
  }
  check(cudaMemcpyAsync(device.batch.as(), staging, at.end(n_sequences), cudaMemcpyHostToDevice,
                        device.stream.handle),
        "copying a batch to the GPU");
}

bool replay_pass(Device& device, uint64_t key) {
  const auto found = device.graphs.find(whole_key(device, key));
  if (found == device.graphs.end()) return false;
  device.use();
  found->second.queue(device.stream.handle);
  return true;
}

void record_pass(Device& device) {
  device.use();
  check(cudaStreamBeginCapture(device.stream.handle, cudaStreamCaptureModeThreadLocal),
        "recording a pass");
  device.is_recording = true;
}

void end_recording(Device& device, uint64_t key, bool is_kept) {
  device.use();
  cudaGraph_t captured = nullptr;
  const cudaError_t error = cudaStreamEndCapture(device.stream.handle, &captured);
  device.is_recording = false;
  if (!is_kept) {
    if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));
    static_cast<void>(cudaGetLastError());
    return;
  }
  check(error, "recording a pass");
  const auto [place, is_new] = device.graphs.emplace(whole_key(device, key), cuda::Graph(captured));
  place->second.queue(device.stream.handle);
}

void finish_pass(Device& device, int64_t& layer, DeviceOp& op) {
  device.use();
  auto* staging = reinterpret_cast<int32_t*>(device.batch_staging->data() + device.layout.fault);
  check(cudaMemcpyAsync(staging, device.batch_array<int32_t>(device.layout.fault), sizeof *staging,
                        cudaMemcpyDeviceToHost, device.stream.handle),
        "reading what a pass met");
  check(cudaStreamSynchronize(device.stream.handle), "waiting for a pass");
  const int32_t code = *staging - 1;
  layer = code < 0 ? -1 : code / kDeviceOps;
  op = static_cast<DeviceOp>(code < 0 ? 0 : code % kDeviceOps);
}

}  // namespace llama2q
