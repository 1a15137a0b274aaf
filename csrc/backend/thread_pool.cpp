#include "backend/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/float_env.h"
#include "base/os/forks.h"
#include "base/os/threads.h"

namespace llama2q {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

using std::chrono::microseconds;

// How long a worker waits for the next job before it parks: longer than what the caller does
// between the ops of a layer.
constexpr microseconds kSpin{30};
// How long the caller, who leaves its core to whoever wants it, waits for a worker that has lost
// its own before it parks: a time slice.
constexpr microseconds kYield{4000};

// Spins for a while until done() holds; says whether it did.
template <class Done>
bool spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

struct ThreadPool::Workers {
  // The job: written while it is closed and nobody is inside.
  Body body = nullptr;
  void* context = nullptr;
  int64_t n = 0;
  int64_t grain = 1;
  std::atomic<int64_t> next{0};

  // Whether the job is open to workers, whether the caller has parked, and below these bits how
  // many workers are inside. A worker that wakes up after the caller closed the job is not waited
  // for.
  static constexpr uint32_t kOpen = 1u << 31;
  static constexpr uint32_t kCallerParked = 1u << 30;
  static constexpr uint32_t kInside = kCallerParked - 1;
  std::atomic<uint32_t> state{0};
  std::atomic<uint32_t> epoch{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;

  void work(int thread) noexcept {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      body(context, begin, std::min(begin + grain, n), thread);
    }
  }

  void join_job(int thread) noexcept {
    uint32_t seen = state.load(std::memory_order_relaxed);
    while ((seen & kOpen) != 0) {
      if (!state.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) continue;
      const FloatEnv environment;
      work(thread);
      if (state.fetch_sub(1, std::memory_order_release) == (kCallerParked | 1)) state.notify_one();
      return;
    }
  }

  void loop(int thread) noexcept {
    uint32_t seen = 0;
    for (;;) {
      if (!spin([&] { return epoch.load(std::memory_order_acquire) != seen; })) {
        epoch.wait(seen, std::memory_order_acquire);
      }
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      join_job(thread);
    }
  }

  // Closes the job and waits for those who are inside.
  void finish_job() noexcept {
    const auto done = [&] { return (state.load(std::memory_order_acquire) & kInside) == 0; };
    state.fetch_and(~kOpen, std::memory_order_acq_rel);
    const auto end = std::chrono::steady_clock::now() + kYield;
    while (!done()) {
      if (spin(done)) return;
      if (std::chrono::steady_clock::now() >= end) return park_caller();
      std::this_thread::yield();
    }
  }

  void park_caller() noexcept {
    uint32_t seen = state.fetch_or(kCallerParked, std::memory_order_acq_rel) | kCallerParked;
    while ((seen & kInside) != 0) {
      state.wait(seen, std::memory_order_acquire);
      seen = state.load(std::memory_order_acquire);
    }
    state.store(0, std::memory_order_relaxed);
  }
};

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads) {
  require(n_threads >= 1 && n_threads <= 1024,
          "n_threads is " + std::to_string(n_threads) + "; expected 1 to 1024");
  start();
}

void ThreadPool::start() {
  fork_count_ = fork_count();
  workers_ = std::make_unique<Workers>();
  for (int thread = 1; thread < n_threads_; ++thread) {
    workers_->threads.emplace_back([workers = workers_.get(), thread] {
      begin_compute_thread(thread);
      workers->loop(thread);
    });
  }
}

ThreadPool::~ThreadPool() {
  if (fork_count_ != fork_count()) {
    workers_.release();  // the parent's threads do not exist here and cannot be joined
    return;
  }
  workers_->stop.store(true);
  workers_->epoch.fetch_add(1, std::memory_order_release);
  workers_->epoch.notify_all();
  for (std::thread& thread : workers_->threads) thread.join();
}

void ThreadPool::run(int64_t n, int64_t grain, Body body, void* context) {
  if (n <= 0) return;
  if (fork_count_ != fork_count()) {
    workers_.release();
    start();
  }
  if (n_threads_ == 1 || n <= grain) {
    for (int64_t i = 0; i < n; i += grain) body(context, i, std::min(i + grain, n), 0);
    return;
  }
  Workers& w = *workers_;
  w.body = body;
  w.context = context;
  w.n = n;
  w.grain = grain;
  w.next.store(0, std::memory_order_relaxed);
  w.state.fetch_or(Workers::kOpen, std::memory_order_release);
  w.epoch.fetch_add(1, std::memory_order_release);
  w.epoch.notify_all();
  w.work(0);
  w.finish_job();
}

}  // namespace llama2q
