#include "base/os/threads.h"

#include <pthread.h>
#include <sys/qos.h>

#include <cstdio>

namespace llama2q {

// The class below USER_INTERACTIVE, which is that of drawing and input.
void begin_compute_thread(int number) noexcept {
  char name[32];
  std::snprintf(name, sizeof name, "llama2q-%d", number);
  ::pthread_setname_np(name);
  ::pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
}

}  // namespace llama2q
