// os_services FOLDER: calls what csrc/base/os offers on this system and checks what comes back.
// Exit code 0: all as expected; 1: the first that is not.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "affinity.h"
#include "backend/cpu_features.h"
#include "backend/thread_pool.h"
#include "base/os/cpus.h"
#include "base/os/file_pages.h"
#include "base/os/forks.h"
#include "base/os/library.h"
#include "base/os/memory.h"
#include "mapped.h"
#include "model/read_ahead.h"
#include "system_library.h"

namespace llama2q {
namespace {

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

void check_memory() {
  constexpr int64_t kBytes = int64_t{64} * 1024 * 1024 + 4096;
  for (const PageSize size : {PageSize::kDefault, PageSize::kHuge, PageSize::kSmall}) {
    Memory memory(kBytes, size);
    char* data = memory.data();
    expect(reinterpret_cast<uintptr_t>(data) % 4096 == 0, "memory is not aligned to a page");
    for (int64_t i = 0; i < kBytes; i += 4096) {
      expect(data[i] == 0, "memory is not zero");
      data[i] = 1;
    }
  }
  try {
    const Memory memory(int64_t{1} << 60, PageSize::kDefault);
    expect(false, "2^60 bytes were given");
  } catch (const std::bad_alloc&) {
    std::printf("memory: zero, aligned, refused when too much\n");
  }
}

void check_file(const std::string& folder) {
  constexpr int64_t kBytes = int64_t{5} * 1024 * 1024 + 123;
  std::vector<std::byte> content(kBytes);
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<std::byte>(i * 7 / 5);
  const Mapped file(folder + "/mapped.bin", content);
  std::atomic<bool> stop{false};
  for (const Loading loading : {Loading::kMap, Loading::kRead}) {
    const FilePages pages(file.descriptor(), file.data(), kBytes, loading);
    pages.load(0, kBytes, stop);
    pages.load(4097, 4099, stop);
    expect(std::equal(content.begin(), content.end(), file.data()), "a map has other bytes");
    pages.drop(0, kBytes);
    expect(std::equal(content.begin(), content.end(), file.data()),
           "dropped pages came back wrong");
  }
  for (const char* loading : {"map", "read"}) {
    const std::vector<LayerBytes> layers{{0, 1 << 20, false}, {1 << 20, kBytes, false}};
    ReadAhead reader(file.descriptor(), {file.data(), static_cast<size_t>(kBytes)}, layers, 0,
                     loading_of(loading));
    for (int pass = 0; pass < 3; ++pass) {
      for (int64_t layer = 0; layer < 2; ++layer) {
        reader.acquire(layer, [] {});
        reader.release(layer);
      }
    }
  }
  std::printf("file: loaded, dropped, read ahead; every byte right\n");
  const std::string said = file.replace_with_other();
  std::printf("replacing a mapped file: %s\n", said.c_str());
  expect(said == Mapped::expected_replacement(), "that is not what is expected");
}

void check_library() {
  const SystemLibrary known = system_library();
  const Library library(known.path);
  expect(library.symbol(known.function) != nullptr, "a library lacks its function");
  expect(library.symbol("llama2q_nothing") == nullptr, "a library has what it has not");
  std::string said;
  try {
    const Library missing("no-such-library-\xc3\xa4");
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  expect(said.find("no-such-library-\xc3\xa4") != std::string::npos, "not named: " + said);
  std::printf("library: loaded, asked; one that is missing is named\n");
}

// Many short jobs, with pauses in which the workers park, and more threads than processors.
void check_pool(int n_threads) {
  ThreadPool pool(n_threads);
  std::vector<int64_t> sums(static_cast<size_t>(n_threads));
  const auto start = std::chrono::steady_clock::now();
  constexpr int kJobs = 400;
  for (int job = 0; job < kJobs; ++job) {
    std::fill(sums.begin(), sums.end(), 0);
    pool.parallel_for(1000, 7, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) sums[static_cast<size_t>(thread)] += i;
    });
    int64_t sum = 0;
    for (const int64_t part : sums) sum += part;
    expect(sum == 499500, "a pool of " + std::to_string(n_threads) + " threads lost work");
    if (job % 40 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("pool of %d: %d jobs, %.0f us each\n", n_threads, kJobs,
              1e6 * seconds.count() / kJobs);
}

void check_cpus() {
  const int allowed = allowed_cpus(), fast = fast_cores();
  std::printf("cpus: %d allowed, %d fast cores, %d threads by default; forks %d\n", allowed, fast,
              default_thread_count(), static_cast<int>(fork_count()));
  expect(1 <= fast && fast <= allowed, "more cores than processors");
  expect(default_thread_count() <= fast && usable_cpus() <= allowed, "more threads than cores");
  if (!bind_to_one_cpu()) {
    std::printf("affinity: this system has none\n");
    return;
  }
  expect(allowed_cpus() == 1 && fast_cores() == 1 && default_thread_count() == 1,
         "bound to one processor, found " + std::to_string(allowed_cpus()));
  std::printf("affinity: bound to one processor, which is seen\n");
}

}  // namespace
}  // namespace llama2q

int main(int n_arguments, char** arguments) {
  using namespace llama2q;
  try {
    expect(n_arguments == 2, "usage: os_services FOLDER");
    check_memory();
    check_file(arguments[1]);
    check_library();
    for (const int n_threads : {1, 2, usable_cpus(), usable_cpus() + 3}) check_pool(n_threads);
    check_cpus();
    for (const int n_threads : {1, 3}) check_pool(n_threads);
  } catch (const std::exception& error) {
    std::printf("os_services: %s\n", error.what());
    return 1;
  }
  return 0;
}
