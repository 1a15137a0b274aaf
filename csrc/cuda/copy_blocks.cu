// Copies of whole KV blocks in all layers: one launch.
#include "cuda/copy_blocks.h"
#include "cuda/intrinsics.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kUnit = sizeof(uint4);
// Bytes of a block that a thread block copies.
constexpr int64_t kPiece = 4 * kThreads * kUnit;

// Layer i's memory is i * stride bytes beyond that of `layer`.
struct Copy {
  KvLayerView layer;
  int64_t stride;
  int64_t block_bytes, scale_bytes;  // K or V of a block, in one layer
  const int32_t* source;
  const int32_t* destination;
};

__device__ void copy_piece(const Copy& args, void* base, int64_t bytes, int64_t piece) {
  char* memory = static_cast<char*>(base) + blockIdx.y * args.stride;
  const char* from = memory + args.source[blockIdx.z] * bytes;
  char* to = memory + args.destination[blockIdx.z] * bytes;
  const int64_t end = min((piece + 1) * kPiece, bytes);
  for (int64_t at = piece * kPiece + threadIdx.x * kUnit; at < end; at += kThreads * kUnit) {
    *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
  }
}

// Block (x, y, z): piece x of K and V of layer y, pair z of blocks.
__global__ void __launch_bounds__(kThreads) copy_pieces(const Copy args) {
  wait_for_previous();
  let_next_start();
  const int64_t piece = blockIdx.x;
  copy_piece(args, args.layer.k, args.block_bytes, piece);
  copy_piece(args, args.layer.v, args.block_bytes, piece);
  if (args.scale_bytes == 0) return;
  copy_piece(args, args.layer.k_scales, args.scale_bytes, piece);
  copy_piece(args, args.layer.v_scales, args.scale_bytes, piece);
}

int64_t distance(const void* from, const void* to) {
  return static_cast<const char*>(to) - static_cast<const char*>(from);
}

// Bytes between two layers if all four arrays are as far apart, else 0.
int64_t stride_between(const KvLayerView& a, const KvLayerView& b) {
  const int64_t stride = distance(a.k, b.k);
  const bool scaled = a.k_scales != nullptr;
  if (distance(a.v, b.v) != stride) return 0;
  if (scaled && distance(a.k_scales, b.k_scales) != stride) return 0;
  if (scaled && distance(a.v_scales, b.v_scales) != stride) return 0;
  return stride;
}

}  // namespace

void copy_blocks(const Stream& stream, const KvLayerView* layers, int64_t n_layers,
                 const int32_t* source, const int32_t* destination, int64_t n) {
  if (n == 0) return;
  for (int64_t begin = 0, end; begin < n_layers; begin = end) {
    const KvLayerView& first = layers[begin];
    end = begin + 1;
    const int64_t stride = end < n_layers ? stride_between(first, layers[end]) : 0;
    while (stride != 0 && end < n_layers &&
           stride_between(layers[end - 1], layers[end]) == stride) {
      ++end;
    }
    const int64_t rows = first.n_kv_heads * kBlockSize;
    const Copy args{.layer = first,
                    .stride = stride,
                    .block_bytes = rows * first.head_dim * element_bytes(first.type),
                    .scale_bytes = first.k_scales == nullptr ? 0 : rows * 2,
                    .source = source,
                    .destination = destination};
    const dim3 grid(static_cast<unsigned>((args.block_bytes + kPiece - 1) / kPiece),
                    static_cast<unsigned>(end - begin), static_cast<unsigned>(n));
    launch(stream, copy_pieces, grid, dim3(kThreads), 0, args);
  }
}

}  // namespace llama2q::cuda
