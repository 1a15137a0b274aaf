#include "base/os/memory.h"

#include <new>

#include "base/os/windows/windows.h"

namespace llama2q {

Memory::Memory(int64_t bytes, PageSize) : bytes_(static_cast<size_t>(bytes)) {
  data_ = ::VirtualAlloc(nullptr, bytes_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (data_ == nullptr) throw std::bad_alloc();
}

Memory::~Memory() { ::VirtualFree(data_, 0, MEM_RELEASE); }

}  // namespace llama2q
