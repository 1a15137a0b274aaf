// The scheduler: runs a grid block by block, a block warp by warp.
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "block.h"
#include "emulation/control.h"
#include "emulation/execution.h"
#include "emulation/variables.h"
#include "names.h"
#include "overlap.h"
#include "sanitizers.h"
#include "shared_memory.h"

namespace cuda_emulation {

namespace {

void say_where() {
  if (block.current == nullptr) return;
  const std::string text = located(*block.current, "a sanitizer ends the process");
  std::fprintf(stderr, "%s\n", text.c_str());
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
    return located(thread,
                   "the warp has diverged: " + describe(thread) + ", " + describe(*waiting));
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
      return located(thread,
                     "the block has diverged: " + describe(thread) + ", " + describe(*waiting));
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

}  // namespace

std::string run_grid(const Grid& grid) {
  block.grid = &grid;
  block.failure.clear();
  block.has_waited = false;
  if (watches_addresses()) {
    static_cast<void>(mangled_name(grid.kernel));  // not to be looked for when all is lost
    before_death(say_where);
  }
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
    if (grid.programmatic) hide();
    std::string error = run_block(grid);
    const std::string early = reveal();  // of a block in which no thread waited
    if (error.empty() && !early.empty()) error = located(block.threads[0], early);
    if (!error.empty()) return error;
  }
  // Else the launch after this one could begin before the one before it has ended.
  if (grid.programmatic && !block.has_waited) {
    return "kernel " + kernel_name(grid.kernel) +
           ": no thread said wait_for_previous() in a programmatic launch";
  }
  return "";
}

}  // namespace cuda_emulation
