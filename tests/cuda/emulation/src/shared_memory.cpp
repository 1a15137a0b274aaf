#include "shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "emulation/execution.h"
#include "emulation/qualifiers.h"

// The linker's names for the ends of the section that __shared__ variables lie in.
extern "C" unsigned char __start_cuda_shared[];
extern "C" unsigned char __stop_cuda_shared[];

namespace cuda_emulation {

namespace {

constexpr size_t kAlignment = 16;

// So that the section exists.
__shared__ unsigned char anchor[16];

unsigned char* dynamic = nullptr;
size_t dynamic_bytes_held = 0;

// Between the variables may lie what a sanitizer forbids to touch.
__attribute__((no_sanitize("address", "undefined"))) void fill_variables() {
  unsigned char* to = __start_cuda_shared;
  auto bytes = static_cast<size_t>(__stop_cuda_shared - __start_cuda_shared);
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xff) : "memory");
#else
  for (volatile unsigned char* p = to; bytes > 0; --bytes) *p++ = 0xff;
#endif
}

}  // namespace

void fill_shared_memory(size_t dynamic_bytes) {
  static_cast<void>(anchor);
  fill_variables();
  // Exactly as large as asked: a sanitizer sees what lies beyond.
  if (dynamic_bytes != dynamic_bytes_held || dynamic == nullptr) {
    std::free(dynamic);
    dynamic = nullptr;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, dynamic_bytes) != 0) throw std::bad_alloc();
    dynamic = static_cast<unsigned char*>(memory);
    dynamic_bytes_held = dynamic_bytes;
  }
  if (dynamic_bytes > 0) std::memset(dynamic, 0xff, dynamic_bytes);
}

unsigned char* dynamic_shared_memory() { return dynamic; }

bool is_shared(const void* address, size_t bytes) {
  const auto inside = [&](const unsigned char* begin, const unsigned char* end) {
    const auto from = reinterpret_cast<uintptr_t>(address);
    return from >= reinterpret_cast<uintptr_t>(begin) &&
           from + bytes <= reinterpret_cast<uintptr_t>(end);
  };
  return inside(__start_cuda_shared, __stop_cuda_shared) ||
         inside(dynamic, dynamic + dynamic_bytes_held);
}

}  // namespace cuda_emulation
