#include "base/os/posix/parallel_read.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "base/buffer.h"

namespace llama2q {
namespace {

// Requests that keep the queue of a solid-state disk filled.
constexpr int kReaders = 4;
constexpr int64_t kPieceBytes = int64_t{1024} * 1024;

}  // namespace

void read_in_parallel(int file, int64_t begin, int64_t end,
                      const std::atomic<bool>& stop) noexcept {
  std::atomic<int64_t> next{begin};
  const auto read = [&]() noexcept {
    Buffer<char> buffer;
    char* target = nullptr;
    try {
      target = buffer.reserve(kPieceBytes);
    } catch (const std::bad_alloc&) {
      return;
    }
    while (!stop.load(std::memory_order_relaxed)) {
      const int64_t at = next.fetch_add(kPieceBytes, std::memory_order_relaxed);
      if (at >= end) return;
      const auto size = static_cast<size_t>(std::min(kPieceBytes, end - at));
      if (::pread(file, target, size, static_cast<off_t>(at)) <= 0) return;
    }
  };
  std::vector<std::thread> helpers;
  try {
    while (std::ssize(helpers) < kReaders - 1) helpers.emplace_back(read);
  } catch (const std::exception&) {
    // The system has no thread left: fewer read, or this one alone.
  }
  read();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace llama2q
