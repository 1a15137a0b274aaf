// The pages of a mapped file: read ahead of their use, dropped after it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace llama2q {

// How pages come into memory: through the map, as the system likes it best, or by several threads
// that read the file and throw away what they read, where faults on the map read little at a time
// (macOS). Windows has its own way alone.
enum class Loading { kMap, kRead };

// Hints alone: a call that the system does not know changes nothing but speed.
class FilePages {
 public:
  // file: a descriptor of the mapped file, duplicated here; map: all of it.
  FilePages(int file, const std::byte* map, int64_t map_bytes, Loading loading);
  ~FilePages();
  FilePages(const FilePages&) = delete;
  FilePages& operator=(const FilePages&) = delete;

  // Returns when the bytes are in memory or `stop` is set. Bytes that are in memory already are
  // left to be mapped by those who read them.
  void load(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept;
  // Frees the memory of whole pages, unless another process has them mapped. Linux alone.
  void drop(int64_t begin, int64_t end) const noexcept;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace llama2q
