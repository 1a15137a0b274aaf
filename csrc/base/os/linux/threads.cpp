#include "base/os/threads.h"

#include <pthread.h>

#include <cstdio>

namespace llama2q {

void begin_compute_thread(int number) noexcept {
  char name[16];  // the longest that there is
  std::snprintf(name, sizeof name, "llama2q-%d", number);
  ::pthread_setname_np(::pthread_self(), name);
}

}  // namespace llama2q
