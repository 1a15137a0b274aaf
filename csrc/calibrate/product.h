// Products of large float32 matrices on all cores.
#pragma once

#include "backend/thread_pool.h"
#include "base/buffer.h"
#include "kernels/args.h"

namespace llama2q {

// Cuts C into tiles that threads take as they get free. kernels/gemm.h says what an element is; no
// bit depends on the tiles. Holds kGemmScratch floats (768 KiB) per thread.
class Products {
 public:
  Products(const KernelTable& table, ThreadPool& pool);

  // Of any size. The caller holds a FloatEnv.
  void add(const GemmArgs& product);

 private:
  int64_t tile_of(const GemmArgs& product) const;

  const KernelTable& table_;
  ThreadPool& pool_;
  Buffer<float> scratch_;  // [n_threads, kGemmScratch]
};

}  // namespace llama2q
