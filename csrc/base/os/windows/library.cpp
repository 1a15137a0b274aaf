#include "base/os/library.h"

#include <stdexcept>

#include "base/os/windows/windows.h"

namespace llama2q {
namespace {

// Paths are UTF-8 here.
std::wstring wide(const std::string& text) {
  const int n = ::MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, nullptr, 0);
  std::wstring result(static_cast<size_t>(n), L'\0');
  ::MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, result.data(), n);
  return result;
}

}  // namespace

Library::Library(const std::string& path) : handle_(::LoadLibraryW(wide(path).c_str())) {
  if (handle_ == nullptr) {
    throw std::runtime_error(path + " cannot be loaded: error " + std::to_string(::GetLastError()));
  }
}

Library::~Library() { ::FreeLibrary(static_cast<HMODULE>(handle_)); }

void* Library::symbol(const char* name) const {
  return reinterpret_cast<void*>(::GetProcAddress(static_cast<HMODULE>(handle_), name));
}

}  // namespace llama2q
