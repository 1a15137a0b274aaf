#include "base/os/forks.h"

#include <pthread.h>

#include <atomic>
#include <mutex>

namespace llama2q {
namespace {

std::atomic<uint64_t> count{0};

}  // namespace

uint64_t fork_count() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); }); });
  return count.load(std::memory_order_relaxed);
}

}  // namespace llama2q
