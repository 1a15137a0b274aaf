#include "base/os/memory.h"

#include <sys/mman.h>

#include <new>

namespace llama2q {

Memory::Memory(int64_t bytes, PageSize page_size) : bytes_(static_cast<size_t>(bytes)) {
  data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
  if (page_size == PageSize::kDefault) return;
  ::madvise(data_, bytes_, page_size == PageSize::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

Memory::~Memory() { ::munmap(data_, bytes_); }

}  // namespace llama2q
