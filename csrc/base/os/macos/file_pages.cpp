#include "base/os/file_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/os/posix/parallel_read.h"

namespace llama2q {
namespace {

constexpr int64_t kAdviceBytes = int64_t{64} * 1024 * 1024;
constexpr int64_t kSampleBytes = int64_t{1024} * 1024;

}  // namespace

struct FilePages::Impl {
  int file;
  std::byte* map;
  int64_t page;
  Loading loading;

  // Looks at a page here and there: map and file share the page cache.
  bool are_cached(int64_t begin, int64_t end) const noexcept {
    for (int64_t at = begin / page * page; at < end; at += kSampleBytes) {
      char state = 0;
      if (::mincore(map + at, static_cast<size_t>(page), &state) != 0) return false;
      if ((state & MINCORE_INCORE) == 0) return false;
    }
    return true;
  }

  void advise(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
    for (; begin < end && !stop.load(std::memory_order_relaxed); begin += kAdviceBytes) {
      radvisory advice{static_cast<off_t>(begin),
                       static_cast<int>(std::min(kAdviceBytes, end - begin))};
      ::fcntl(file, F_RDADVISE, &advice);
    }
  }
};

FilePages::FilePages(int file, const std::byte* map, int64_t, Loading loading) {
  const int own = ::dup(file);
  require(own >= 0, "read_ahead: " + std::to_string(file) + " is not an open file");
  impl_.reset(new Impl{own, const_cast<std::byte*>(map), ::getpagesize(), loading});
}

FilePages::~FilePages() { ::close(impl_->file); }

// A fault on the map reads a few pages at a time, one after the other, which is far below what the
// disk can do; F_RDADVISE is dropped where the disk is busy.
void FilePages::load(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
  if (impl_->are_cached(begin, end)) return;
  if (impl_->loading == Loading::kRead) return read_in_parallel(impl_->file, begin, end, stop);
  impl_->advise(begin, end, stop);
}

void FilePages::drop(int64_t, int64_t) const noexcept {}

}  // namespace llama2q
