// Reads the weights of layers from the disk ahead of their use.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "base/os/file_pages.h"

namespace llama2q {

// The bytes [begin, end) of the map that a layer's weights take.
struct LayerBytes {
  int64_t begin;
  int64_t end;
  bool streamed;  // dropped after each use; the others stay in memory
};

// "map" or "read"; anything else throws InvalidArgument.
Loading loading_of(std::string_view name);

// Cyclic access defeats an LRU cache: with room for all layers but one, it would read all of them
// again in every pass. So most layers stay, and those marked as streamed are dropped right after
// use and read again before the next one, by a thread of its own that stops when `window_bytes` of
// them are in memory. Where none is streamed, all are read once, from the beginning on. All of it
// are hints to the page cache: what a layer reads is the map.
class ReadAhead {
 public:
  // file: a descriptor of the mapped file, duplicated here; map: all of it.
  ReadAhead(int file, std::span<const std::byte> map, std::vector<LayerBytes> layers,
            int64_t window_bytes, Loading loading);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // Returns when the layer is in memory. Meanwhile calls `interrupt` every 50 ms, which may throw.
  // Layers are acquired and released one by one, in order; any pass may end early.
  void acquire(int64_t layer, const std::function<void()>& interrupt);
  void release(int64_t layer);

 private:
  struct Reader;

  uint64_t fork_count_;
  std::unique_ptr<Reader> reader_;
};

}  // namespace llama2q
