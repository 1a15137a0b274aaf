#include "model/read_ahead.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/os/forks.h"

namespace llama2q {

Loading loading_of(std::string_view name) {
  require(name == "map" || name == "read",
          "loading is \"" + std::string(name) + "\"; expected map or read");
  return name == "map" ? Loading::kMap : Loading::kRead;
}

// Layers are counted through all passes: number n of the second pass follows the last one of the
// first. Everything but the pages is guarded by the mutex.
struct ReadAhead::Reader {
  FilePages pages;
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
         int64_t window_size, Loading loading)
      : pages(file, map.data(), std::ssize(map), loading),
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
                     int64_t window_bytes, Loading loading)
    : fork_count_(fork_count()),
      reader_(std::make_unique<Reader>(file, map, std::move(layers), window_bytes, loading)) {
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
