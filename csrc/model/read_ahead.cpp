#include "model/read_ahead.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/forks.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

namespace llama2q {
namespace {

#if defined(__linux__)
// Fewer bytes than any disk queue takes from one call; the kernel ignores what is beyond.
constexpr int64_t kRequestBytes = int64_t{512} * 1024;
// Requested while the one before is waited for.
constexpr int64_t kBlockBytes = int64_t{8} * 1024 * 1024;
constexpr int64_t kSampleBytes = int64_t{1024} * 1024;
#if !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22
#endif

// Hints alone: a call that this kernel does not know changes nothing but speed.
class Pages {
 public:
  // Huge pages spare a quarter of a decoding step where page tables are nested (virtual machines).
  // The page cache has them only if it is the map, so advised, that has the file read: a request
  // for read-ahead would bring small ones.
  Pages(int file, const std::byte* map, int64_t map_bytes)
      : file_(::dup(file)), map_(const_cast<std::byte*>(map)), page_(::sysconf(_SC_PAGESIZE)) {
    require(file_ >= 0, "read_ahead: " + std::to_string(file) + " is not an open file");
    huge_ = ::madvise(map_, static_cast<size_t>(map_bytes), MADV_HUGEPAGE) == 0;
  }
  ~Pages() { ::close(file_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  // Returns when the bytes are in memory and mapped, or `stop` is set. Bytes that are in memory
  // already are left to be mapped by those who read them.
  void load(int64_t begin, int64_t end, const std::atomic<bool>& stop) const noexcept {
    if (are_cached(begin, end)) return;
    begin = begin / page_ * page_;
    end = (end + page_ - 1) / page_ * page_;
    request(begin, std::min(begin + kBlockBytes, end));
    for (int64_t at = begin; at < end && !stop.load(std::memory_order_relaxed); at += kBlockBytes) {
      const int64_t next = std::min(at + kBlockBytes, end);
      request(next, std::min(next + kBlockBytes, end));
      ::madvise(map_ + at, static_cast<size_t>(next - at), MADV_POPULATE_READ);
    }
  }

  // Frees the memory of whole pages, unless another process has them mapped.
  void drop(int64_t begin, int64_t end) const noexcept {
    begin = (begin + page_ - 1) / page_ * page_;
    end = end / page_ * page_;
    if (begin >= end) return;
    ::madvise(map_ + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
    ::posix_fadvise(file_, begin, end - begin, POSIX_FADV_DONTNEED);
  }

 private:
  // Looks at a byte here and there; mincore would say nothing about a file of another user's.
  bool are_cached(int64_t begin, int64_t end) const noexcept {
    for (int64_t at = begin; at < end; at += kSampleBytes) {
      char byte = 0;
      const iovec target{&byte, 1};
      if (::preadv2(file_, &target, 1, at, RWF_NOWAIT) != 1) return false;
    }
    return true;
  }

  void request(int64_t begin, int64_t end) const noexcept {
    if (huge_) return;
    for (; begin < end; begin += kRequestBytes) {
      ::posix_fadvise(file_, begin, std::min(kRequestBytes, end - begin), POSIX_FADV_WILLNEED);
    }
  }

  int file_;
  std::byte* map_;
  int64_t page_;
  bool huge_;
};
#else
class Pages {
 public:
  Pages(int, const std::byte*, int64_t) {}
  void load(int64_t, int64_t, const std::atomic<bool>&) const noexcept {}
  void drop(int64_t, int64_t) const noexcept {}
};
#endif

}  // namespace

// Layers are counted through all passes: number n of the second pass follows the last one of the
// first. Everything but the pages is guarded by the mutex.
struct ReadAhead::Reader {
  Pages pages;
  const std::vector<LayerBytes> layers;
  const int64_t window_bytes;
  const bool once = is_once();
  std::mutex mutex;
  std::condition_variable to_reader, to_caller;
  int64_t used = 0;     // layers before this one have been released
  int64_t loaded = 0;   // layers before this one have been loaded
  int64_t window = 0;   // bytes of streamed layers in memory, that being loaded among them
  bool wanted = false;  // whether there has been a step at all
  bool loading = false;
  std::atomic<bool> stop{false};
  std::thread thread;

  Reader(int file, std::span<const std::byte> map, std::vector<LayerBytes> layer_bytes,
         int64_t window_size)
      : pages(file, map.data(), std::ssize(map)),
        layers(std::move(layer_bytes)),
        window_bytes(window_size) {}

  int64_t n_layers() const { return static_cast<int64_t>(layers.size()); }
  const LayerBytes& layer(int64_t number) const {
    return layers[static_cast<size_t>(number % n_layers())];
  }
  int64_t window_bytes_of(int64_t number) const {
    return layer(number).streamed ? layer(number).end - layer(number).begin : 0;
  }

  // Without a streamed layer there is one pass only, begun at once: page by page, a cold file would
  // be read slowly and a warm one mapped slowly.
  bool is_once() const {
    return std::ranges::none_of(layers, [](const LayerBytes& bytes) { return bytes.streamed; });
  }

  bool may_load() const {
    if (once) return true;
    if (!wanted || loaded >= used + n_layers()) return false;
    return loaded == used || window + window_bytes_of(loaded) <= window_bytes;
  }

  void loop() {
    std::unique_lock lock(mutex);
    while (!once || loaded < n_layers()) {
      to_reader.wait(lock, [&] { return stop.load() || may_load(); });
      if (stop.load()) return;
      window += window_bytes_of(loaded);
      loading = true;
      const LayerBytes bytes = layer(loaded);
      lock.unlock();
      pages.load(bytes.begin, bytes.end, stop);
      lock.lock();
      loading = false;
      ++loaded;
      to_caller.notify_one();
    }
  }

  // Waits for the reader's next layer; the lock is open while `interrupt` runs.
  void wait(std::unique_lock<std::mutex>& lock, const std::function<void()>& interrupt) {
    using std::chrono::milliseconds;
    if (to_caller.wait_for(lock, milliseconds(50)) == std::cv_status::no_timeout) return;
    lock.unlock();
    interrupt();
    lock.lock();
  }

  void drop(int64_t number) {
    if (layer(number).streamed) pages.drop(layer(number).begin, layer(number).end);
    window -= window_bytes_of(number);
  }

  // Begins a pass after one that ended early.
  void restart(std::unique_lock<std::mutex>& lock, const std::function<void()>& interrupt) {
    wanted = false;
    while (loading) wait(lock, interrupt);
    for (int64_t number = used; number < loaded; ++number) drop(number);
    used = loaded = 0;
  }
};

ReadAhead::ReadAhead(int file, std::span<const std::byte> map, std::vector<LayerBytes> layers,
                     int64_t window_bytes)
    : fork_count_(fork_count()),
      reader_(std::make_unique<Reader>(file, map, std::move(layers), window_bytes)) {
  reader_->thread = std::thread([reader = reader_.get()] { reader->loop(); });
}

ReadAhead::~ReadAhead() {
  if (fork_count_ != fork_count()) {
    reader_.release();  // the thread is the parent's
    return;
  }
  {
    const std::lock_guard lock(reader_->mutex);
    reader_->stop.store(true);
  }
  reader_->to_reader.notify_one();
  reader_->thread.join();
}

void ReadAhead::acquire(int64_t layer, const std::function<void()>& interrupt) {
  if (fork_count_ != fork_count()) return;
  Reader& r = *reader_;
  std::unique_lock lock(r.mutex);
  if (r.once) {
    while (r.loaded <= layer) r.wait(lock, interrupt);
    return;
  }
  if (r.used % r.n_layers() != layer) r.restart(lock, interrupt);
  r.wanted = true;
  r.to_reader.notify_one();
  while (r.loaded <= r.used) r.wait(lock, interrupt);
}

void ReadAhead::release(int64_t layer) {
  if (fork_count_ != fork_count()) return;
  Reader& r = *reader_;
  if (r.once) return;
  if (r.layer(layer).streamed) r.pages.drop(r.layer(layer).begin, r.layer(layer).end);
  {
    const std::lock_guard lock(r.mutex);
    r.window -= r.window_bytes_of(layer);
    ++r.used;
  }
  r.to_reader.notify_one();
}

}  // namespace llama2q
