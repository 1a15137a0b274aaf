#include "sanitizers.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATION_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATION_ASAN 1
#endif

#ifdef CUDA_EMULATION_ASAN

#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

namespace cuda_emulation {

bool watches_addresses() { return true; }
void forbid(const void* address, size_t bytes) { __asan_poison_memory_region(address, bytes); }
void permit(const void* address, size_t bytes) { __asan_unpoison_memory_region(address, bytes); }

void before_death(void (*callback)()) {
  __sanitizer_set_death_callback(callback);
  // GCC's libubsan ends the process by itself.
  if (void* library = dlopen("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD)) {
    if (void* setter = dlsym(library, "__sanitizer_set_death_callback")) {
      reinterpret_cast<void (*)(void (*)())>(setter)(callback);
    }
    dlclose(library);
  }
}

}  // namespace cuda_emulation

#else

namespace cuda_emulation {

bool watches_addresses() { return false; }
void forbid(const void*, size_t) {}
void permit(const void*, size_t) {}
void before_death(void (*)()) {}

}  // namespace cuda_emulation

#endif
