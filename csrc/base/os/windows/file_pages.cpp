#include "base/os/file_pages.h"

#include <algorithm>

#include "base/os/windows/windows.h"

namespace llama2q {
namespace {

// A call cannot be interrupted.
constexpr int64_t kBlockBytes = int64_t{16} * 1024 * 1024;

}  // namespace

struct FilePages::Impl {
  std::byte* map;
};

FilePages::FilePages(int, const std::byte* map, int64_t, Loading)
    : impl_(new Impl{const_cast<std::byte*>(map)}) {}

FilePages::~FilePages() = default;

void FilePages::load(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
  for (int64_t at = begin; at < end && !stop.load(std::memory_order_relaxed); at += kBlockBytes) {
    WIN32_MEMORY_RANGE_ENTRY range{impl_->map + at,
                                   static_cast<SIZE_T>(std::min(kBlockBytes, end - at))};
    ::PrefetchVirtualMemory(::GetCurrentProcess(), 1, &range, 0);
  }
}

void FilePages::drop(int64_t, int64_t) const noexcept {}

}  // namespace llama2q
