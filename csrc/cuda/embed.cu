// Rows of the embedding table to float32: int8 with a scale per group, or dense.
#include "cuda/embed.h"
#include "cuda/intrinsics.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 256;

struct Embed {
  EmbeddingView table;
  const int32_t* token_ids;
  float* x;
};

// Elements of each kind, from the first of a row on.
struct OfF32 {
  static __device__ __forceinline__ float value(const EmbeddingView& table, int64_t row,
                                                int column) {
    return static_cast<const float*>(table.codes)[row * table.cols + column];
  }
};

struct OfF16 {
  static __device__ __forceinline__ float value(const EmbeddingView& table, int64_t row,
                                                int column) {
    return half_to_float(static_cast<const uint16_t*>(table.codes)[row * table.cols + column]);
  }
};

struct OfBf16 {
  static __device__ __forceinline__ float value(const EmbeddingView& table, int64_t row,
                                                int column) {
    const uint32_t bits = static_cast<const uint16_t*>(table.codes)[row * table.cols + column];
    return __uint_as_float(bits << 16);
  }
};

struct OfInt8 {
  static __device__ __forceinline__ float value(const EmbeddingView& table, int64_t row,
                                                int column) {
    const int code = static_cast<const int8_t*>(table.codes)[row * table.cols + column];
    const int group = column / static_cast<int>(table.group_size);
    return static_cast<float>(code) * half_to_float(table.scales[row * table.n_groups + group]);
  }
};

// Block x of a token: kThreads columns.
template <class Kind>
__global__ void __launch_bounds__(kThreads) embed_rows(const Embed args) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.y;
  const int column = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (column >= args.table.cols) return;
  const int64_t row = args.token_ids[token];
  args.x[token * args.table.cols + column] = Kind::value(args.table, row, column);
}

}  // namespace

void embed(const Stream& stream, const EmbeddingView& table, const int32_t* token_ids, int64_t n,
           float* x) {
  if (n == 0) return;
  const Embed args{table, token_ids, x};
  const dim3 grid(static_cast<unsigned>((table.cols + kThreads - 1) / kThreads),
                  static_cast<unsigned>(n));
  const dim3 block(kThreads);
  switch (table.kind) {
    case MatrixKind::kF32:
      return launch(stream, embed_rows<OfF32>, grid, block, 0, args);
    case MatrixKind::kF16:
      return launch(stream, embed_rows<OfF16>, grid, block, 0, args);
    case MatrixKind::kBf16:
      return launch(stream, embed_rows<OfBf16>, grid, block, 0, args);
    default:
      return launch(stream, embed_rows<OfInt8>, grid, block, 0, args);
  }
}

}  // namespace llama2q::cuda
