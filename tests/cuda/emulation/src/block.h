// The block that runs and its threads, as the scheduler (grid.cpp) and device code (thread.cpp) see
// them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "emulation/execution.h"
#include "fiber.h"
#include "random.h"

namespace cuda_emulation {

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
  bool has_waited;                  // for the launch before
  std::vector<Copy> copies;         // not yet arrived
  std::vector<size_t> group_sizes;  // of closed groups, in copies
  size_t n_open;                    // copies of the group that is open
};

// Static, because fibers find it there.
struct Block {
  std::vector<Thread> threads;  // never shrinks: the vectors of copies are used again
  size_t n_threads = 0;
  const Grid* grid = nullptr;
  Random random;
  bool shuffled = false;
  bool has_waited = false;  // some thread of the grid, for the launch before

  Thread* current = nullptr;
  Fiber scheduler{};
  // Threads of the warp that runs, in the order in which they do.
  Thread* order[kWarp];
  int n_order = 0, position = 0;
  std::string failure;
};

extern Block block;

void make_current(Thread* thread);
// What a fiber does.
void thread_main();

std::string text_of(const Place& place);
bool same_place(const Place& a, const Place& b);
// "thread (x, y, z) is at ..."
std::string describe(const Thread& thread);
// With kernel, block and thread in front.
std::string located(const Thread& thread, const std::string& message);

}  // namespace cuda_emulation
