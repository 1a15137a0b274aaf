#include "base/os/library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace llama2q {

// Never unmapped: the CUDA runtime leaves functions behind that exit() calls.
Library::Library(const std::string& path)
    : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
  if (handle_ == nullptr) {
    const char* text = dlerror();
    throw std::runtime_error(text != nullptr ? text : path + " cannot be loaded");
  }
}

Library::~Library() { dlclose(handle_); }

void* Library::symbol(const char* name) const { return dlsym(handle_, name); }

}  // namespace llama2q
