#include "cuda/work.h"

#include <algorithm>

namespace llama2q::cuda {
namespace {

constexpr size_t kAlignment = 256;  // of what cudaMalloc returns, and of the parts of a work space

constexpr int64_t up_to_256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T>
size_t bytes_of(int64_t n) {
  return static_cast<size_t>(n) * sizeof(T);
}

}  // namespace

int64_t most_prefill_tiles(int64_t n_tokens, int64_t group) {
  return n_tokens * ((group + kPrefillRows - 1) / kPrefillRows);
}

int64_t tile_width(const DeviceLimits& limits, int64_t n_tokens, int64_t cols, int64_t group_size) {
  if (n_tokens > kFewTokens) return kGemmWidth;
  const auto fits = [&](int width) {
    const auto n_units = static_cast<int>(units_of(cols, group_size));
    return shared_layout(static_cast<int>(group_size), width, n_units).end <= limits.shared_bytes;
  };
  if (n_tokens == 1 && fits(1)) return 1;
  return n_tokens > 8 && fits(16) ? 16 : 8;
}

int64_t activation_bytes(int64_t n_tokens, int64_t width, int64_t cols, int64_t group_size) {
  const int64_t n_tiles = (n_tokens + width - 1) / width;
  const int record = record_layout(static_cast<int>(group_size), static_cast<int>(width)).bytes;
  return n_tiles * units_of(cols, group_size) * record;
}

MatmulWork matmul_work(const DeviceLimits& limits, int64_t n_tokens, int64_t cols,
                       int64_t group_size) {
  MatmulWork parts{};
  if (group_size != 0) {
    const int64_t width = tile_width(limits, n_tokens, cols, group_size);
    parts.activations = up_to_256(activation_bytes(n_tokens, width, cols, group_size));
  }
  parts.normed = up_to_256(n_tokens * cols * int64_t{sizeof(float)});
  if (n_tokens > kFewTokens && group_size != 0) {
    parts.partial = 2 * limits.n_multiprocessors * kTileFloats * int64_t{sizeof(float)};
  }
  return parts;
}

int64_t matmul_work_bytes(const DeviceLimits& limits, int64_t n_tokens, int64_t cols,
                          int64_t group_size) {
  const MatmulWork parts = matmul_work(limits, n_tokens, cols, group_size);
  return parts.activations + parts.normed + parts.partial;
}

int64_t gemv_tickets(int64_t n_kv_heads) { return kFewTokens / 8 * 2 * n_kv_heads; }

int64_t gemm_tickets(const DeviceLimits& limits) { return limits.n_multiprocessors; }

int64_t matmul_tickets(const DeviceLimits& limits, int64_t n_kv_heads) {
  return std::max(gemv_tickets(n_kv_heads), gemm_tickets(limits));
}

int64_t decode_states(int64_t n_tokens, int64_t n_heads, int64_t head_dim, int64_t context) {
  const int64_t of_token = n_heads * ((context + kDecodeSplit - 1) / kDecodeSplit);
  const int64_t of_launch = std::min(std::min(n_tokens, kDecodeTokens) * of_token, kDecodeStates);
  return std::max(of_launch, of_token) * (head_dim + 2);
}

int64_t decode_tickets(int64_t n_tokens, int64_t n_heads) {
  return std::min(n_tokens, kDecodeTokens) * n_heads;
}

int64_t select_keys(int64_t n_rows, int64_t vocab_size, int64_t k) {
  return n_rows * ((vocab_size + kSelectChunk - 1) / kSelectChunk) * k;
}

BatchLayout::BatchLayout(int64_t n_tokens, const DeviceShape& shape) {
  const auto n = static_cast<size_t>(n_tokens), half = static_cast<size_t>(shape.head_dim / 2);
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  size_t at = 0;
  const auto take = [&at](size_t bytes) {
    const size_t begin = at;
    at += (bytes + 15) / 16 * 16;
    return begin;
  };
  fault = take(sizeof(int32_t));
  token_ids = take(n * sizeof(int32_t));
  positions = take(n * sizeof(int32_t));
  sequence_of_token = take(n * sizeof(int32_t));
  output_rows = take(n * sizeof(int32_t));
  cos = take(n * half * sizeof(float));
  sin = take(n * half * sizeof(float));
  tiles = take(static_cast<size_t>(most_prefill_tiles(n_tokens, group)) * sizeof(PrefillTile));
  tables = at;
  table_bytes = static_cast<size_t>(shape.n_ctx_blocks) * sizeof(int32_t);
}

WorkSizes::WorkSizes(const DeviceShape& s, const DeviceLimits& limits) {
  const int64_t widest = std::max(s.dim, s.hidden_dim), context = s.n_ctx_blocks * kBlockSize;
  rows[static_cast<int>(Rows::kX)] = bytes_of<float>(s.n_tokens * s.dim);
  rows[static_cast<int>(Rows::kQ)] = bytes_of<float>(s.n_tokens * s.dim);
  rows[static_cast<int>(Rows::kAttended)] = bytes_of<float>(s.n_tokens * s.dim);
  rows[static_cast<int>(Rows::kHidden)] = bytes_of<float>(s.n_tokens * s.hidden_dim);
  rows[static_cast<int>(Rows::kOutput)] = bytes_of<float>(s.n_rows * std::max(s.vocab_size, s.dim));
  keys = bytes_of<float>(s.n_tokens * s.n_kv_heads * s.head_dim);
  asked = bytes_of<float>(s.n_rows * s.dim);
  // The group of any matrix: small ones have more scales, large ones longer records.
  matmul = 0;
  for (const int64_t group_size : {0, 32, 64, 128}) {
    const int64_t needed = matmul_work_bytes(limits, s.n_tokens, widest, group_size);
    const int64_t one = matmul_work_bytes(limits, 1, widest, group_size);
    matmul = std::max(matmul, static_cast<size_t>(std::max(needed, one)));
  }
  matmul_tickets = bytes_of<uint32_t>(cuda::matmul_tickets(limits, s.n_kv_heads));
  states = bytes_of<float>(cuda::decode_states(s.n_tokens, s.n_heads, s.head_dim, context));
  decode_tickets = bytes_of<uint32_t>(cuda::decode_tickets(s.n_tokens, s.n_heads));
  select_keys = bytes_of<uint64_t>(cuda::select_keys(s.n_rows, s.vocab_size, kMostSelected));
  select_tickets = bytes_of<uint32_t>(s.n_rows);
  selected = bytes_of<float>(s.n_rows * kMostSelected);
  batch = BatchLayout(s.n_tokens, s).end(s.n_tokens);
}

int64_t WorkSizes::total() const {
  size_t sum = 0;
  const auto add = [&sum](size_t bytes) {
    sum += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  for (const size_t bytes : rows) add(bytes);
  for (int i = 0; i < 2; ++i) {
    add(keys);
    add(selected);
    add(kStagingBytes);
  }
  for (const size_t bytes : {asked, matmul, matmul_tickets, states, decode_tickets, select_keys,
                             select_tickets, batch}) {
    add(bytes);
  }
  return static_cast<int64_t>(sum);
}

}  // namespace llama2q::cuda
