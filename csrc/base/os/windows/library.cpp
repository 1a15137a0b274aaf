#include "base/os/library.h"

#include <windows.h>

#include <stdexcept>

namespace llama2q {

Library::Library(const std::string& path) : handle_(LoadLibraryA(path.c_str())) {
  if (handle_ == nullptr) {
    throw std::runtime_error(path + " cannot be loaded: error " + std::to_string(GetLastError()));
  }
}

Library::~Library() { FreeLibrary(static_cast<HMODULE>(handle_)); }

void* Library::symbol(const char* name) const {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(handle_), name));
}

}  // namespace llama2q
