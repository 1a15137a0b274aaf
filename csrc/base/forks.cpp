#include "base/forks.h"

#include <atomic>
#include <mutex>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace llama2q {
namespace {

std::atomic<uint64_t> count{0};

}  // namespace

uint64_t fork_count() {
#if defined(__unix__) || defined(__APPLE__)
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); }); });
#endif
  return count.load(std::memory_order_relaxed);
}

}  // namespace llama2q
