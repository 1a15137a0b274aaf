#include "model/kv_cache.h"

#include <string>

#include "base/check.h"

namespace llama2q {
namespace {

using std::to_string;

int64_t rounded_up(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// Bytes of a block in one layer from which on huge pages hold few enough of them.
constexpr int64_t kHugePagesFrom = int64_t{256} * 1024;

// Bytes of K or V: of one block in one layer, of one layer (whole pages), of the whole cache.
struct Sizes {
  int64_t block, block_scales;
  int64_t data, scales;
  int64_t total;
};

Sizes sizes_of(KvType type, int64_t n_layers, int64_t n_blocks, int64_t n_kv_heads,
               int64_t head_dim) {
  require(n_blocks >= 1 && n_blocks < (int64_t{1} << 31),
          "n_blocks is " + to_string(n_blocks) + "; expected 1 to 2**31 - 1");
  const int64_t rows = checked_multiply(n_kv_heads, kBlockSize);
  Sizes sizes{};
  sizes.block = checked_multiply(checked_multiply(rows, head_dim), element_bytes(type));
  sizes.block_scales = type == KvType::kInt8 ? rows * 2 : 0;
  sizes.data = rounded_up(checked_multiply(sizes.block, n_blocks));
  sizes.scales = rounded_up(checked_multiply(sizes.block_scales, n_blocks));
  sizes.total = checked_multiply(2 * (sizes.data + sizes.scales), n_layers);
  return sizes;
}

}  // namespace

KvType kv_type_of(std::string_view name) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kInt8}) {
    if (name == name_of(type)) return type;
  }
  throw InvalidArgument("kv_dtype is \"" + std::string(name) + "\"; expected f32, f16 or int8");
}

const char* name_of(KvType type) {
  return type == KvType::kF32 ? "f32" : type == KvType::kF16 ? "f16" : "int8";
}

KvCache::KvCache(Backend& backend, KvType type, int64_t n_layers, int64_t n_blocks,
                 int64_t n_kv_heads, int64_t head_dim)
    : backend_(backend), type_(type), n_blocks_(n_blocks) {
  const Sizes sizes = sizes_of(type, n_layers, n_blocks, n_kv_heads, head_dim);
  const int64_t data = sizes.data, scales = sizes.scales;
  memory_ = backend.allocate(sizes.total, sizes.block >= kHugePagesFrom);
  char* p = memory_->data();
  const auto take = [&p](int64_t bytes) {
    char* part = p;
    p += bytes;
    return bytes == 0 ? nullptr : part;
  };
  for (int64_t i = 0; i < n_layers; ++i) {
    layers_.push_back({.type = type,
                       .n_blocks = n_blocks,
                       .n_kv_heads = n_kv_heads,
                       .head_dim = head_dim,
                       .k = take(data),
                       .v = take(data),
                       .k_scales = reinterpret_cast<uint16_t*>(take(scales)),
                       .v_scales = reinterpret_cast<uint16_t*>(take(scales))});
  }
}

int64_t KvCache::bytes_for(KvType type, int64_t n_layers, int64_t n_blocks, int64_t n_kv_heads,
                           int64_t head_dim) {
  return sizes_of(type, n_layers, n_blocks, n_kv_heads, head_dim).total;
}

std::array<KvCache::Part, 4> KvCache::parts_of(const KvLayerView& layer, int32_t block) const {
  const int64_t rows = layer.n_kv_heads * kBlockSize;
  const int64_t data = rows * layer.head_dim * element_bytes(type_);
  const int64_t scales = type_ == KvType::kInt8 ? rows * 2 : 0;
  const auto part = [block](void* begin, int64_t bytes) {
    return Part{bytes == 0 ? nullptr : static_cast<char*>(begin) + block * bytes, bytes};
  };
  return {part(layer.k, data), part(layer.v, data), part(layer.k_scales, scales),
          part(layer.v_scales, scales)};
}

int64_t KvCache::block_bytes() const {
  int64_t bytes = 0;
  for (const KvLayerView& layer : layers_) {
    for (const Part& part : parts_of(layer, 0)) bytes += part.bytes;
  }
  return bytes;
}

// Backends copy whole floats: a part has 64 rows, so its bytes are a multiple of 4.
void KvCache::read_block(int32_t block, char* host) const {
  for (const KvLayerView& layer : layers_) {
    for (const Part& part : parts_of(layer, block)) {
      if (part.bytes == 0) continue;
      backend_.copy_out(reinterpret_cast<const float*>(part.data), part.bytes / 4,
                        reinterpret_cast<float*>(host));
      host += part.bytes;
    }
  }
}

void KvCache::write_block(int32_t block, const char* host) {
  for (const KvLayerView& layer : layers_) {
    for (const Part& part : parts_of(layer, block)) {
      if (part.bytes == 0) continue;
      backend_.copy_in(reinterpret_cast<const float*>(host), part.bytes / 4,
                       reinterpret_cast<float*>(part.data));
      host += part.bytes;
    }
  }
}

void KvCache::copy_blocks(const int32_t* source, const int32_t* destination, int64_t n) {
  std::vector<char> role(static_cast<size_t>(n_blocks_), 0);
  const auto check = [&](const char* name, int32_t block) {
    require(block >= 0 && block < n_blocks_, std::string(name) + " block " + to_string(block) +
                                                 " is out of range; there are " +
                                                 to_string(n_blocks_));
  };
  for (int64_t i = 0; i < n; ++i) {
    check("source", source[i]);
    role[static_cast<size_t>(source[i])] = 1;
  }
  for (int64_t i = 0; i < n; ++i) {
    check("destination", destination[i]);
    char& used = role[static_cast<size_t>(destination[i])];
    require(used == 0, "destination block " + to_string(destination[i]) +
                           (used == 1 ? " is also a source" : " stands twice"));
    used = 2;
  }
  backend_.copy_blocks(layers_.data(), static_cast<int64_t>(layers_.size()), source, destination,
                       n);
}

}  // namespace llama2q
