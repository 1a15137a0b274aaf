// The memory of CpuBackend: rows, the KV cache, copies.
#include <cstring>

#include "backend/cpu_backend.h"
#include "base/os/memory.h"

namespace llama2q {
namespace {

class HostMemory final : public BackendMemory {
 public:
  HostMemory(int64_t bytes, PageSize page_size) : memory_(bytes, page_size) {}
  char* data() override { return memory_.data(); }

 private:
  Memory memory_;
};

}  // namespace

std::unique_ptr<BackendMemory> CpuBackend::allocate(int64_t bytes, bool in_large_blocks) {
  // A huge page is committed as a whole.
  return std::make_unique<HostMemory>(bytes,
                                      in_large_blocks ? PageSize::kHuge : PageSize::kDefault);
}

float* CpuBackend::rows(Rows which, int64_t floats) {
  return rows_[static_cast<int>(which)].reserve(floats);
}

void CpuBackend::copy_in(const float* host, int64_t floats, float* rows) {
  if (host != rows) std::memcpy(rows, host, static_cast<size_t>(floats) * sizeof(float));
}

void CpuBackend::copy_out(const float* rows, int64_t floats, float* host) {
  copy_in(rows, floats, host);
}

void CpuBackend::copy_blocks(const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                             const int32_t* destination, int64_t n) {
  for (int64_t l = 0; l < n_layers; ++l) {
    const KvLayerView& layer = layers[l];
    const int64_t rows = layer.n_kv_heads * kBlockSize;
    const int64_t bytes = rows * layer.head_dim * element_bytes(layer.type);
    const auto copy = [&](void* base, int64_t size, int64_t i) {
      if (base == nullptr) return;
      char* p = static_cast<char*>(base);
      std::memcpy(p + destination[i] * size, p + source[i] * size, static_cast<size_t>(size));
    };
    for (int64_t i = 0; i < n; ++i) {
      copy(layer.k, bytes, i);
      copy(layer.v, bytes, i);
      copy(layer.k_scales, rows * 2, i);
      copy(layer.v_scales, rows * 2, i);
    }
  }
}

}  // namespace llama2q
