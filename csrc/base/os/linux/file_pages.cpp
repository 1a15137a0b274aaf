#include "base/os/file_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/os/posix/parallel_read.h"

namespace llama2q {
namespace {

// Fewer bytes than any disk queue takes from one call; the kernel ignores what is beyond.
constexpr int64_t kRequestBytes = int64_t{512} * 1024;
// Requested while the one before is waited for.
constexpr int64_t kBlockBytes = int64_t{8} * 1024 * 1024;
constexpr int64_t kSampleBytes = int64_t{1024} * 1024;
#if !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22
#endif

}  // namespace

struct FilePages::Impl {
  int file;
  std::byte* map;
  int64_t page;
  Loading loading;
  // Huge pages spare a quarter of a decoding step where page tables are nested (virtual machines).
  // The page cache has them only if it is the map, so advised, that has the file read: a request
  // for read-ahead would bring small ones.
  bool huge;

  // Looks at a byte here and there; mincore would say nothing about a file of another user's.
  bool are_cached(int64_t begin, int64_t end) const noexcept {
    for (int64_t at = begin; at < end; at += kSampleBytes) {
      char byte = 0;
      const iovec target{&byte, 1};
      if (::preadv2(file, &target, 1, at, RWF_NOWAIT) != 1) return false;
    }
    return true;
  }

  void request(int64_t begin, int64_t end) const noexcept {
    if (huge) return;
    for (; begin < end; begin += kRequestBytes) {
      ::posix_fadvise(file, begin, std::min(kRequestBytes, end - begin), POSIX_FADV_WILLNEED);
    }
  }

  void populate(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
    begin = begin / page * page;
    end = (end + page - 1) / page * page;
    request(begin, std::min(begin + kBlockBytes, end));
    for (int64_t at = begin; at < end && !stop.load(std::memory_order_relaxed); at += kBlockBytes) {
      const int64_t next = std::min(at + kBlockBytes, end);
      request(next, std::min(next + kBlockBytes, end));
      ::madvise(map + at, static_cast<size_t>(next - at), MADV_POPULATE_READ);
    }
  }
};

FilePages::FilePages(int file, const std::byte* map, int64_t map_bytes, Loading loading) {
  const int own = ::dup(file);
  require(own >= 0, "read_ahead: " + std::to_string(file) + " is not an open file");
  auto* bytes = const_cast<std::byte*>(map);
  const bool huge = loading == Loading::kMap &&
                    ::madvise(bytes, static_cast<size_t>(map_bytes), MADV_HUGEPAGE) == 0;
  impl_.reset(new Impl{own, bytes, ::sysconf(_SC_PAGESIZE), loading, huge});
}

FilePages::~FilePages() { ::close(impl_->file); }

void FilePages::load(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
  if (impl_->are_cached(begin, end)) return;
  if (impl_->loading == Loading::kRead) return read_in_parallel(impl_->file, begin, end, stop);
  impl_->populate(begin, end, stop);
}

void FilePages::drop(int64_t begin, int64_t end) const noexcept {
  begin = (begin + impl_->page - 1) / impl_->page * impl_->page;
  end = end / impl_->page * impl_->page;
  if (begin >= end) return;
  ::madvise(impl_->map + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
  ::posix_fadvise(impl_->file, begin, end - begin, POSIX_FADV_DONTNEED);
}

}  // namespace llama2q
