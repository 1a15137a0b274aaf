// A file of a test, written and mapped as Python does it: closed, but for what the map keeps.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace llama2q {

class Mapped {
 public:
  Mapped(std::string path, std::span<const std::byte> content);
  ~Mapped();
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  const std::byte* data() const { return data_; }
  // A descriptor for FilePages; -1 where it needs none.
  int descriptor() const { return descriptor_; }
  // Tries to give another file this one's name while it is mapped; says what the system did, and
  // what llama2q/files.py counts on.
  std::string replace_with_other() const;
  static const char* expected_replacement();

 private:
  std::string path_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  int descriptor_ = -1;
  [[maybe_unused]] void* handle_ = nullptr;  // of Windows
};

}  // namespace llama2q
