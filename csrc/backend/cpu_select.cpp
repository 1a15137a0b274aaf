#include <algorithm>
#include <numeric>
#include <vector>

#include "backend/cpu_backend.h"

namespace llama2q {

void CpuBackend::select(int64_t n_rows, int64_t vocab_size, int64_t k, const float* logits,
                        float* values, int32_t* ids) {
  std::vector<int32_t> order(static_cast<size_t>(vocab_size));
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* from = logits + row * vocab_size;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(), [from](int32_t a, int32_t b) {
      return from[a] > from[b] || (from[a] == from[b] && a < b);
    });
    for (int64_t i = 0; i < k; ++i) {
      ids[row * k + i] = order[static_cast<size_t>(i)];
      values[row * k + i] = from[order[static_cast<size_t>(i)]];
    }
  }
}

}  // namespace llama2q
