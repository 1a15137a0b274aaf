#include "shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "binary.h"
#include "emulation/execution.h"

namespace cuda_emulation {

namespace {

constexpr size_t kAlignment = 16;

unsigned char* dynamic = nullptr;
size_t dynamic_bytes_held = 0;

// The sections of __shared__ variables (emulation/qualifiers.h).
const std::vector<Bytes>& variables() {
  static const std::vector<Bytes> sections = own_sections(".noinit");
  return sections;
}

// Between variables may lie what a sanitizer forbids to touch.
__attribute__((no_sanitize("address", "undefined"))) void fill(unsigned char* to, size_t bytes) {
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xff) : "memory");
#else
  for (volatile unsigned char* p = to; bytes > 0; --bytes) *p++ = 0xff;
#endif
}

}  // namespace

void fill_shared_memory(size_t dynamic_bytes) {
  for (const Bytes& section : variables()) {
    fill(section.begin, static_cast<size_t>(section.end - section.begin));
  }
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
  for (const Bytes& section : variables()) {
    if (inside(section.begin, section.end)) return true;
  }
  return inside(dynamic, dynamic + dynamic_bytes_held);
}

}  // namespace cuda_emulation
