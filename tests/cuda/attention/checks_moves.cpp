// embed() and copy_blocks(): the CPU's bytes.
#include <cmath>
#include <random>

#include "base/types.h"
#include "checks.h"
#include "cuda/copy_blocks.h"
#include "cuda/embed.h"
#include "harness.h"
#include "isa/tables.h"
#include "step.h"

namespace checks {
namespace {

std::vector<uint8_t> random_bytes(std::mt19937& random, int64_t n) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// A table of finite values.
std::vector<uint8_t> codes_of(MatrixKind kind, std::mt19937& random, int64_t n) {
  if (kind == MatrixKind::kInt8) return random_bytes(random, n);
  std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < n; ++i) {
    const float x = std::ldexp(static_cast<float>(random()) * 0x1p-32f - 0.5f,
                               static_cast<int>(random() % 40) - 25);
    const uint32_t bits = llama2q::float_bits(x);
    const uint32_t of_kind = kind == MatrixKind::kF32   ? bits
                             : kind == MatrixKind::kF16 ? llama2q::f32_to_f16(x)
                                                        : bits >> 16;
    for (int byte = 0; byte < (kind == MatrixKind::kF32 ? 4 : 2); ++byte) {
      bytes.push_back(static_cast<uint8_t>(of_kind >> (8 * byte)));
    }
  }
  return bytes;
}

}  // namespace

void check_embed() {
  std::mt19937 random(1);
  const int64_t rows = 37;
  const std::vector<int32_t> ids = {0, 36, 5, 5, 17};
  for (const MatrixKind kind :
       {MatrixKind::kInt8, MatrixKind::kF32, MatrixKind::kF16, MatrixKind::kBf16}) {
    for (const int64_t cols : {8, 172, 300, 512}) {
      const int64_t group_size = kind == MatrixKind::kInt8 ? 32 : 0;
      const int64_t n_groups = kind == MatrixKind::kInt8 ? (cols + 31) / 32 : 0;
      const std::vector<uint8_t> codes = codes_of(kind, random, rows * cols);
      std::vector<uint16_t> scales;
      for (int64_t i = 0; i < rows * n_groups; ++i) {
        scales.push_back(static_cast<uint16_t>((random() & 0x83ffu) + 0x400u * (random() % 30)));
      }
      const Buffer<uint8_t> device_codes(codes);
      const Buffer<uint16_t> device_scales(scales);
      const Buffer<int32_t> device_ids(ids);
      Buffer<float> x(ids.size() * static_cast<size_t>(cols));
      EmbeddingView table{.kind = kind,
                          .rows = rows,
                          .cols = cols,
                          .group_size = group_size,
                          .n_groups = n_groups,
                          .codes = device_codes.data(),
                          .scales = device_scales.data()};
      cuda::embed(stream(), table, device_ids.data(), static_cast<int64_t>(ids.size()), x.data());
      table.codes = codes.data();
      table.scales = scales.data();
      std::vector<float> expected(ids.size() * static_cast<size_t>(cols));
      for (size_t i = 0; i < ids.size(); ++i) {
        llama2q::kScalarKernels.embed(table, ids[i],
                                      expected.data() + static_cast<int64_t>(i) * cols);
      }
      expect_equal(
          x.read(), expected,
          "kind " + std::to_string(static_cast<int>(kind)) + ", cols " + std::to_string(cols));
    }
  }
}

namespace {

// Layers of a cache in one piece of memory, with `gap` bytes before the last one.
struct Layers {
  Layers(const Shape& shape, int64_t n_blocks, int64_t n_layers, int64_t gap, std::mt19937& random)
      : data(static_cast<size_t>(shape.head_dim * element_bytes(shape.type) * shape.n_kv_heads *
                                 kBlockSize * n_blocks)),
        scales(shape.type == KvType::kInt8
                   ? static_cast<size_t>(shape.n_kv_heads * kBlockSize * 2 * n_blocks)
                   : 0),
        layer(2 * (data + scales)),
        bytes(random_bytes(random, n_layers * static_cast<int64_t>(layer) + gap)),
        memory(bytes) {
    for (int64_t i = 0; i < n_layers; ++i) {
      uint8_t* at = memory.data() + i * static_cast<int64_t>(layer) + (i == n_layers - 1 ? gap : 0);
      const bool scaled = scales != 0;
      views.push_back(
          {.type = shape.type,
           .n_blocks = n_blocks,
           .n_kv_heads = shape.n_kv_heads,
           .head_dim = shape.head_dim,
           .k = at,
           .v = at + data,
           .k_scales = scaled ? reinterpret_cast<uint16_t*>(at + 2 * data) : nullptr,
           .v_scales = scaled ? reinterpret_cast<uint16_t*>(at + 2 * data + scales) : nullptr});
    }
  }

  // The same copies, done here.
  void copy(const std::vector<int32_t>& from, const std::vector<int32_t>& to) {
    for (const KvLayerView& view : views) {
      for (size_t i = 0; i < from.size(); ++i) {
        const auto move = [&](const void* part, size_t size) {
          if (part == nullptr) return;
          const size_t block = size / static_cast<size_t>(view.n_blocks);
          const auto base = static_cast<size_t>(static_cast<const uint8_t*>(part) - memory.data());
          for (size_t b = 0; b < block; ++b) {
            bytes[base + static_cast<size_t>(to[i]) * block + b] =
                bytes[base + static_cast<size_t>(from[i]) * block + b];
          }
        };
        move(view.k, data);
        move(view.v, data);
        move(view.k_scales, scales);
        move(view.v_scales, scales);
      }
    }
  }

  size_t data, scales, layer;
  std::vector<uint8_t> bytes;
  Buffer<uint8_t> memory;
  std::vector<KvLayerView> views;
};

}  // namespace

void check_copy_blocks() {
  std::mt19937 random(2);
  const std::vector<int32_t> from = {4, 0, 4}, to = {1, 6, 2};
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kInt8}) {
    for (const int64_t head_dim : {2, 48, 128}) {
      for (const int64_t gap : {0, 128}) {
        const Shape shape{type, head_dim, 3, 3};
        Layers layers(shape, 7, 3, gap, random);
        const Buffer<int32_t> source(from), destination(to);
        cuda::copy_blocks(stream(), layers.views.data(), 3, source.data(), destination.data(), 3);
        layers.copy(from, to);
        expect_equal(layers.memory.read(), layers.bytes, describe(shape));
      }
    }
  }
}

}  // namespace checks
