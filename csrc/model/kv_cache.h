// The KV cache of some layers: blocks of 64 positions in a backend's memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "kernels/args.h"

namespace llama2q {

KvType kv_type_of(std::string_view name);
const char* name_of(KvType type);

class KvCache {
 public:
  // The backend outlives the cache. On the host, physical memory is taken as blocks are first
  // written (base/os/memory.h).
  KvCache(Backend& backend, KvType type, int64_t n_layers, int64_t n_blocks, int64_t n_kv_heads,
          int64_t head_dim);

  // Bytes of a cache of that shape once every block has been written.
  static int64_t bytes_for(KvType type, int64_t n_layers, int64_t n_blocks, int64_t n_kv_heads,
                           int64_t head_dim);

  KvType type() const { return type_; }
  int64_t n_blocks() const { return n_blocks_; }
  const KvLayerView& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }

  // K and V of source[i] -> destination[i] in every layer. Throws InvalidArgument for an id out of
  // range and for a destination that is also a source or stands twice.
  void copy_blocks(const int32_t* source, const int32_t* destination, int64_t n);

  // Of one block: for each layer K, V, and for int8 their scales, as they lie in the cache; on the
  // host, of any alignment. The id has been checked.
  int64_t block_bytes() const;
  void read_block(int32_t block, char* host) const;
  void write_block(int32_t block, const char* host);

 private:
  struct Part {
    char* data;
    int64_t bytes;
  };
  // K, V, scales of K and of V; without bytes where there are none.
  std::array<Part, 4> parts_of(const KvLayerView& layer, int32_t block) const;

  Backend& backend_;
  KvType type_;
  int64_t n_blocks_;
  std::unique_ptr<BackendMemory> memory_;
  std::vector<KvLayerView> layers_;
};

}  // namespace llama2q
