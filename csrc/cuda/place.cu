// Weights on their way to the device: file -> staging array -> raw bands -> permuted bands.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/ops.h"

namespace llama2q {
namespace {

using cuda::check;

// The staging arrays take turns; one is filled again when what was in it has left the device's raw
// array, too.
class Staged {
 public:
  Staged(Device& device, cudaStream_t stream) : stream_(stream) {
    device.turn ^= 1;
    event_ = device.staged[device.turn];
    host_ = device.staging[device.turn]->data();
    raw_ = device.raw[device.turn].as<char>();
    check(cudaEventSynchronize(event_), "waiting for a copy to the GPU");
  }

  char* host() const { return host_; }
  char* raw() const { return raw_; }
  void send(void* to, size_t bytes) const {
    check(cudaMemcpyAsync(to, host_, bytes, cudaMemcpyHostToDevice, stream_),
          "copying weights to the GPU");
  }
  void done() const { check(cudaEventRecord(event_, stream_), "marking a copy to the GPU"); }

 private:
  cudaStream_t stream_;
  cudaEvent_t event_;
  char *host_, *raw_;
};

// Band by band, on the stream.
MatrixView place(Device& device, const cuda::Stream& stream, const MatrixView& host, void* memory) {
  const MatrixView placed = cuda::placed_matrix(host, memory);
  const int64_t code_bytes = cuda::file_band_code_bytes(host);
  const int64_t scale_bytes = cuda::file_band_scale_bytes(host);
  const int64_t most = static_cast<int64_t>(cuda::kStagingBytes) / (code_bytes + scale_bytes);
  if (most == 0) {
    throw std::invalid_argument("a band of " + std::to_string(host.cols) +
                                " columns does not fit the staging array");
  }
  const auto* codes = static_cast<const char*>(host.codes);
  const auto* scales = reinterpret_cast<const char*>(host.scales);
  for (int64_t first = 0; first < host.n_bands; first += most) {
    const int64_t count = std::min(most, host.n_bands - first);
    const auto n_codes = static_cast<size_t>(count * code_bytes);
    const auto n_scales = static_cast<size_t>(count * scale_bytes);
    const Staged staged(device, stream.handle);
    std::memcpy(staged.host(), codes + first * code_bytes, n_codes);
    if (n_scales != 0) {
      std::memcpy(staged.host() + n_codes, scales + first * scale_bytes, n_scales);
    }
    staged.send(staged.raw(), n_codes + n_scales);
    cuda::place_bands(stream, placed, first, count, staged.raw(),
                      reinterpret_cast<const uint16_t*>(staged.raw() + n_codes));
    staged.done();
  }
  return placed;
}

// Copies to a slot begin when it is free.
void enter(Device& device, StreamSlot slot) {
  device.use();
  check(cudaStreamWaitEvent(device.copies.handle, device.freed[static_cast<int>(slot)]),
        "waiting for a slot");
}

}  // namespace

MatrixView place_matrix(Device& device, const MatrixView& host, void* memory) {
  device.use();
  return place(device, device.stream, host, memory);
}

MatrixView stream_matrix(Device& device, const MatrixView& host, void* memory, StreamSlot slot) {
  enter(device, slot);
  return place(device, device.copies, host, memory);
}

void stream_bytes(Device& device, void* to, const void* host, int64_t bytes, StreamSlot slot) {
  enter(device, slot);
  const auto most = static_cast<int64_t>(cuda::kStagingBytes);
  for (int64_t at = 0; at < bytes; at += most) {
    const auto count = static_cast<size_t>(std::min(most, bytes - at));
    const Staged staged(device, device.copies.handle);
    std::memcpy(staged.host(), static_cast<const char*>(host) + at, count);
    staged.send(static_cast<char*>(to) + at, count);
    staged.done();
  }
}

void await_slot(Device& device, StreamSlot slot) {
  device.use();
  // Kernels prefetch weights before they wait for the launch before: not those that just came.
  device.stream.programmatic = false;
  const cudaEvent_t event = device.arrived[static_cast<int>(slot)];
  check(cudaEventRecord(event, device.copies.handle), "marking what has arrived");
  check(cudaStreamWaitEvent(device.stream.handle, event), "waiting for what visits");
}

void free_slot(Device& device, StreamSlot slot) {
  device.use();
  check(cudaEventRecord(device.freed[static_cast<int>(slot)], device.stream.handle),
        "marking a free slot");
}

}  // namespace llama2q
