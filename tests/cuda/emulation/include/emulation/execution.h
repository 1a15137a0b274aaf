// What device code asks of the emulation. A block's threads are fibers of one host thread; blocks
// run one after the other, each to its end.
//
// A fiber runs until it waits: for its warp (rendezvous()) or for its block (wait_for_block()). The
// order in which fibers run between two waits, and that of the blocks, is drawn from a seed
// (emulation/control.h): results must not depend on it. What cannot go on (threads of a warp at
// different operations or lines, one that has ended) ends the launch with an error that names
// kernel, block and thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "emulation/vector_types.h"

namespace cuda_emulation {

inline constexpr int kWarp = 32;

// A line of device code. Default arguments take the caller's.
struct Place {
  const char* file;
  int line;

  static constexpr Place current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// An operation that the 32 threads of a warp do together: operands[l] is what lane l handed over.
struct WarpOperation {
  const char* name;
  void (*perform)(void* const* operands);
};

// In [0, 32), of the thread that runs.
int lane_index();

// Waits until all threads of the warp are here; one of them performs the operation.
void rendezvous(const WarpOperation& operation, void* operand, const Place& place);
// Waits until all threads of the block that have not ended are here.
void wait_for_block(const Place& place);

// Aligned to 16, as large as the launch asked for.
unsigned char* dynamic_shared_memory();
// Are all these bytes shared memory of the block?
bool is_shared(const void* address, size_t bytes);

// Copies from global to shared memory that arrive late: at once or when waited for, by the seed.
void begin_copy(void* shared, const void* global, size_t bytes, const Place& place);
void close_copy_group();
void wait_for_copies(size_t n_pending);

// The thread has said wait_for_previous().
void note_wait(const Place& place);
// An error unless the thread has said so, or the launch is not programmatic.
void require_wait(const char* operation, const Place& place);

// Ends the launch with an error at the thread that runs.
[[noreturn]] void fail(std::string message, const Place& place);

struct Grid {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  bool programmatic;
  std::function<void()> body;  // what a thread does
};

// Returns an empty string, or what went wrong.
std::string run_grid(const Grid& grid);

}  // namespace cuda_emulation
