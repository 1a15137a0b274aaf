// Weights on their way to the device: file -> staging array -> raw bands -> permuted bands.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/ops.h"

namespace llama2q {

using cuda::check;

MatrixView place_matrix(Device& device, const MatrixView& host, void* memory) {
  device.use();
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
  const cudaStream_t stream = device.stream.handle;
  int turn = 0;
  for (int64_t first = 0; first < host.n_bands; first += most, turn ^= 1) {
    const int64_t count = std::min(most, host.n_bands - first);
    const auto n_codes = static_cast<size_t>(count * code_bytes);
    const auto n_scales = static_cast<size_t>(count * scale_bytes);
    char* staging = device.staging[turn]->data();
    char* raw = device.raw[turn].as<char>();
    check(cudaEventSynchronize(device.staged[turn]), "waiting for a copy to the GPU");
    std::memcpy(staging, codes + first * code_bytes, n_codes);
    if (n_scales != 0) std::memcpy(staging + n_codes, scales + first * scale_bytes, n_scales);
    check(cudaMemcpyAsync(raw, staging, n_codes + n_scales, cudaMemcpyHostToDevice, stream),
          "copying weights to the GPU");
    cuda::place_bands(device.stream, placed, first, count, raw,
                      reinterpret_cast<const uint16_t*>(raw + n_codes));
    check(cudaEventRecord(device.staged[turn], stream), "marking a copy to the GPU");
  }
  return placed;
}

}  // namespace llama2q
