// A shared library that is loaded at run time.
#pragma once

#include <string>

namespace llama2q {

class Library {
 public:
  // Throws std::runtime_error with what the system says.
  explicit Library(const std::string& path);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  // Null if the library has no such name.
  void* symbol(const char* name) const;

 private:
  void* handle_;
};

}  // namespace llama2q
