#include "cuda/gather.h"
#include "cuda/intrinsics.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    gather_kernel(const float* x, const int32_t* indices, int64_t width, float* y) {
  let_next_start();
  wait_for_previous();
  const float* from = x + indices[blockIdx.x] * width;
  float* to = y + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) to[i] = from[i];
}

}  // namespace

void gather(const Stream& stream, const float* x, const int32_t* indices, int64_t n, int64_t width,
            float* y) {
  if (n == 0) return;
  launch(stream, gather_kernel, dim3(static_cast<unsigned>(n)), dim3(kThreads), 0, x, indices,
         width, y);
}

}  // namespace llama2q::cuda
