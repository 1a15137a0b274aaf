#include "base/os/memory.h"

#include <sys/mman.h>

#include <new>

namespace llama2q {

Memory::Memory(int64_t bytes, PageSize) : bytes_(static_cast<size_t>(bytes)) {
  data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Memory::~Memory() { ::munmap(data_, bytes_); }

}  // namespace llama2q
