// The scheduler: runs a grid block by block, a block warp by warp.
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "emulation/control.h"
#include "emulation/execution.h"
#include "emulation/variables.h"
#include "fiber.h"
#include "names.h"
#include "random.h"
#include "shared_memory.h"

namespace cuda_emulation {

uint3 thread_index, block_index;
dim3 block_extent, grid_extent;

namespace {

enum class Status { kReady, kAtWarp, kAtBlock, kEnded };

struct Copy {
  void* shared;
  const void* global;
  size_t bytes;
};

struct Thread {
  uint3 index;
  int lane;
  Status status;
  Fiber fiber;
  // Where it waits, and with what.
  const WarpOperation* operation;
  void* operand;
  Place place;
  bool has_waited;
  std::vector<Copy> copies;         // not yet arrived
  std::vector<size_t> group_sizes;  // of closed groups, in copies
  size_t n_open;                    // copies of the group that is open
};

// The block that runs. Static, because fibers find it there.
struct Block {
  std::vector<Thread> threads;  // never shrinks: the vectors of copies are used again
  size_t n_threads = 0;
  const Grid* grid = nullptr;
  Random random;
  bool shuffled = false;

  Thread* current = nullptr;
  Fiber scheduler{};
  // Threads of the warp that runs, in the order in which they do.
  Thread* order[kWarp];
  int n_order = 0, position = 0;
  std::string failure;
};

Block block;

std::string coordinates(uint3 c) {
  return "(" + std::to_string(c.x) + ", " + std::to_string(c.y) + ", " + std::to_string(c.z) + ")";
}

std::string text_of(const Place& place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash == nullptr ? place.file : slash + 1) + ":" +
         std::to_string(place.line);
}

std::string describe(const Thread& thread) {
  std::string text = "thread " + coordinates(thread.index);
  switch (thread.status) {
    case Status::kReady:
      return text + " runs";
    case Status::kAtWarp:
      return text + " is at " + thread.operation->name + " (" + text_of(thread.place) + ")";
    case Status::kAtBlock:
      return text + " is at sync_block (" + text_of(thread.place) + ")";
    case Status::kEnded:
      return text + " has ended";
  }
  return text;
}

std::string located(const Thread& thread, const std::string& message) {
  return "kernel " + kernel_name(block.grid->kernel) + ", block " + coordinates(block_index) +
         ", thread " + coordinates(thread.index) + ": " + message;
}

void make_current(Thread* thread) {
  block.current = thread;
  if (thread != nullptr) thread_index = thread->index;
}

// The fiber that runs after the current one.
Fiber& next_fiber() {
  Thread* next =
      ++block.position < block.n_order ? block.order[block.position] : nullptr;
  make_current(next);
  return next == nullptr ? block.scheduler : next->fiber;
}

void suspend(Thread& self, Status status, const Place& place) {
  self.status = status;
  self.place = place;
  switch_fiber(self.fiber, next_fiber());
}

void thread_main() {
  Thread& self = *block.current;
  enter_fiber(self.fiber);
  block.grid->body();
  wait_for_copies(0);
  self.status = Status::kEnded;
  leave_fiber(self.fiber, next_fiber());
}

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void start_threads(const Grid& grid) {
  const dim3 extent = grid.block;
  block.n_threads = size_t{extent.x} * extent.y * extent.z;
  if (block.threads.size() < block.n_threads) block.threads.resize(block.n_threads);
  uint3 index{0, 0, 0};
  for (size_t t = 0; t < block.n_threads; ++t) {
    Thread& thread = block.threads[t];
    thread.index = index;
    thread.lane = static_cast<int>(t % kWarp);
    thread.status = Status::kReady;
    thread.has_waited = false;
    thread.copies.clear();
    thread.group_sizes.clear();
    thread.n_open = 0;
    thread.fiber.stack = fiber_stack(t);
    thread.fiber.stack_bytes = fiber_stack_bytes(t);
    prepare_fiber(thread.fiber, thread_main);
    if (++index.x == extent.x) {
      index.x = 0;
      if (++index.y == extent.y) {
        index.y = 0;
        ++index.z;
      }
    }
  }
}

struct Warp {
  Thread* threads;
  int n_threads;
};

Warp warp_of(size_t index) {
  const size_t first = index * kWarp;
  const size_t n = std::min<size_t>(kWarp, block.n_threads - first);
  return {&block.threads[first], static_cast<int>(n)};
}

// Runs the warp's threads until each waits or has ended.
void run_warp(const Warp& warp) {
  const unsigned start = block.shuffled ? block.random.below(kWarp) : 0;
  const unsigned stride = block.shuffled ? 2 * block.random.below(kWarp / 2) + 1 : 1;
  block.n_order = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    const auto l = static_cast<int>((start + i * stride) % kWarp);
    if (l < warp.n_threads && warp.threads[l].status == Status::kReady) {
      block.order[block.n_order++] = &warp.threads[l];
    }
  }
  block.position = 0;
  make_current(block.order[0]);
  switch_fiber(block.scheduler, block.order[0]->fiber);
  make_current(nullptr);
}

// After run_warp(): performs what the warp waits for. Returns an error or an empty string.
std::string settle_warp(const Warp& warp) {
  const Thread* waiting = nullptr;
  for (int l = 0; l < warp.n_threads; ++l) {
    if (warp.threads[l].status == Status::kAtWarp) {
      waiting = &warp.threads[l];
      break;
    }
  }
  if (waiting == nullptr) return "";  // all at the block's barrier or ended
  for (int l = 0; l < warp.n_threads; ++l) {
    const Thread& thread = warp.threads[l];
    if (thread.status == Status::kAtWarp && thread.operation == waiting->operation &&
        same_place(thread.place, waiting->place)) {
      continue;
    }
    return located(thread, "the warp has diverged: " + describe(thread) + ", " +
                               describe(*waiting));
  }
  if (warp.n_threads < kWarp) {
    return located(*waiting, std::string(waiting->operation->name) + " (" +
                                 text_of(waiting->place) + ") in a warp of " +
                                 std::to_string(warp.n_threads) + " threads");
  }
  void* operands[kWarp];
  for (int l = 0; l < kWarp; ++l) operands[l] = warp.threads[l].operand;
  waiting->operation->perform(operands);
  for (int l = 0; l < kWarp; ++l) warp.threads[l].status = Status::kReady;
  return "";
}

// When no warp can run: opens the barrier. Returns an error or an empty string.
std::string settle_block() {
  const Thread* waiting = nullptr;
  for (size_t t = 0; t < block.n_threads; ++t) {
    Thread& thread = block.threads[t];
    if (thread.status != Status::kAtBlock) continue;
    if (waiting == nullptr) waiting = &thread;
    if (!same_place(thread.place, waiting->place)) {
      return located(thread, "the block has diverged: " + describe(thread) + ", " +
                                 describe(*waiting));
    }
  }
  for (size_t t = 0; t < block.n_threads; ++t) {
    Thread& thread = block.threads[t];
    if (thread.status == Status::kAtBlock) thread.status = Status::kReady;
  }
  return "";
}

std::string run_block(const Grid& grid) {
  fill_shared_memory(grid.shared_bytes);
  start_threads(grid);
  const size_t n_warps = (block.n_threads + kWarp - 1) / kWarp;
  std::vector<size_t> ready;
  for (;;) {
    ready.clear();
    for (size_t w = 0; w < n_warps; ++w) {
      const Warp warp = warp_of(w);
      for (int l = 0; l < warp.n_threads; ++l) {
        if (warp.threads[l].status == Status::kReady) {
          ready.push_back(w);
          break;
        }
      }
    }
    if (ready.empty()) return "";
    while (!ready.empty()) {
      const size_t pick =
          block.shuffled ? block.random.below(static_cast<unsigned>(ready.size())) : 0;
      const Warp warp = warp_of(ready[pick]);
      run_warp(warp);
      if (!block.failure.empty()) return block.failure;
      const std::string error = settle_warp(warp);
      if (!error.empty()) return error;
      bool runs = false;
      for (int l = 0; l < warp.n_threads; ++l) runs |= warp.threads[l].status == Status::kReady;
      if (!runs) ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    const std::string error = settle_block();
    if (!error.empty()) return error;
  }
}

Thread& current_thread(const char* operation) {
  if (block.current == nullptr) {
    throw std::logic_error(std::string(operation) + " outside a kernel");
  }
  return *block.current;
}

}  // namespace

int lane_index() { return current_thread("lane").lane; }

void rendezvous(const WarpOperation& operation, void* operand, const Place& place) {
  Thread& self = current_thread(operation.name);
  self.operation = &operation;
  self.operand = operand;
  suspend(self, Status::kAtWarp, place);
}

void wait_for_block(const Place& place) {
  suspend(current_thread("sync_block"), Status::kAtBlock, place);
}

void fail(const std::string& message, const Place& place) {
  Thread& self = current_thread("fail");
  block.failure = located(self, message + " (" + text_of(place) + ")");
  make_current(nullptr);
  leave_fiber(self.fiber, block.scheduler);
}

void note_wait() { current_thread("wait_for_previous").has_waited = true; }

void require_wait(const char* operation, const Place& place) {
  if (block.grid->programmatic && !current_thread(operation).has_waited) {
    fail(std::string(operation) + " before wait_for_previous", place);
  }
}

void begin_copy(void* shared, const void* global, size_t bytes, const Place& place) {
  Thread& self = current_thread("copy_async16");
  const auto misaligned = [bytes](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % bytes != 0;
  };
  if (misaligned(shared) || misaligned(global)) {
    fail("copy_async16 from or to a misaligned address", place);
  }
  if (!is_shared(shared, bytes)) fail("copy_async16 to memory that is not shared", place);
  if (is_shared(global, bytes)) fail("copy_async16 from shared memory", place);
  if (block.shuffled && block.random.below(2) == 0) {
    std::memcpy(shared, global, bytes);
    return;
  }
  self.copies.push_back({shared, global, bytes});
  ++self.n_open;
}

void close_copy_group() {
  Thread& self = current_thread("commit_copies");
  self.group_sizes.push_back(self.n_open);
  self.n_open = 0;
}

void wait_for_copies(size_t n_pending) {
  Thread& self = current_thread("wait_copies");
  if (self.group_sizes.size() <= n_pending) return;
  const auto n_groups = static_cast<std::ptrdiff_t>(self.group_sizes.size() - n_pending);
  const auto groups_end = self.group_sizes.begin() + n_groups;
  const auto n_copies = static_cast<std::ptrdiff_t>(
      std::accumulate(self.group_sizes.begin(), groups_end, size_t{0}));
  for (std::ptrdiff_t i = 0; i < n_copies; ++i) {
    const Copy& copy = self.copies[static_cast<size_t>(i)];
    std::memcpy(copy.shared, copy.global, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + n_copies);
  self.group_sizes.erase(self.group_sizes.begin(), groups_end);
}

std::string run_grid(const Grid& grid) {
  block.grid = &grid;
  block.failure.clear();
  block.shuffled = seed() != 0;
  block.random = Random(seed() + static_cast<uint64_t>(launches()));
  block_extent = grid.block;
  grid_extent = grid.grid;
  const size_t n_blocks = size_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  std::vector<size_t> order(n_blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  if (block.shuffled) block.random.shuffle(order);
  for (const size_t index : order) {
    const size_t x = index % grid.grid.x, yz = index / grid.grid.x;
    block_index = {static_cast<unsigned>(x), static_cast<unsigned>(yz % grid.grid.y),
                   static_cast<unsigned>(yz / grid.grid.y)};
    const std::string error = run_block(grid);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace cuda_emulation
