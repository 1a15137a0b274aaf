// A pool of our own: workers spin for a moment between phases, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace llama2q {

// parallel_for calls from one thread at a time; the caller works too. Survives fork(): the child
// starts its own workers on first use.
class ThreadPool {
 public:
  // body(context, begin, end, thread), thread in [0, n_threads). Must not throw.
  using Body = void (*)(void* context, int64_t begin, int64_t end, int thread);

  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // Runs f(begin, end, thread) over [0, n) in chunks of `grain`, handed out as threads get free.
  template <class Function>
  void parallel_for(int64_t n, int64_t grain, Function&& f) {
    run(
        n, grain,
        [](void* context, int64_t begin, int64_t end, int thread) {
          (*static_cast<std::remove_reference_t<Function>*>(context))(begin, end, thread);
        },
        &f);
  }

 private:
  struct Workers;
  void run(int64_t n, int64_t grain, Body body, void* context);
  void start();

  int n_threads_;
  uint64_t fork_count_;
  std::unique_ptr<Workers> workers_;
};

}  // namespace llama2q
