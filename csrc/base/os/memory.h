// Memory straight from the operating system: zero, in whole pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama2q {

// kHuge and kSmall are wishes, which Linux alone takes: macOS has one size on Arm, and Windows
// gives large pages to none but those with a privilege of their own.
enum class PageSize { kDefault, kHuge, kSmall };

// Physical memory is taken page by page, as it is first written. Windows counts all of it against
// its commit limit at once: what does not fit fails here, and never within a step.
class Memory {
 public:
  // bytes > 0. Throws std::bad_alloc.
  Memory(int64_t bytes, PageSize page_size);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() { return static_cast<char*>(data_); }

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace llama2q
