// Device code's side: a thread waits, copies, fails.
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "block.h"
#include "emulation/variables.h"
#include "names.h"
#include "overlap.h"

namespace cuda_emulation {

uint3 thread_index, block_index;
dim3 block_extent, grid_extent;

Block block;

namespace {

std::string coordinates(uint3 c) {
  // "(" as a string: GCC 12 warns of an insertion before a temporary (bug 105651).
  return std::string("(") + std::to_string(c.x) + ", " + std::to_string(c.y) + ", " +
         std::to_string(c.z) + ")";
}

// The fiber that runs after the current one.
Fiber& next_fiber() {
  Thread* next = ++block.position < block.n_order ? block.order[block.position] : nullptr;
  make_current(next);
  return next == nullptr ? block.scheduler : next->fiber;
}

void suspend(Thread& self, Status status, const Place& place) {
  self.status = status;
  self.place = place;
  switch_fiber(self.fiber, next_fiber());
}

Thread& current_thread(const char* operation) {
  if (block.current == nullptr) {
    throw std::logic_error(std::string(operation) + " outside a kernel");
  }
  return *block.current;
}

}  // namespace

void make_current(Thread* thread) {
  block.current = thread;
  if (thread != nullptr) thread_index = thread->index;
}

void thread_main() {
  Thread& self = *block.current;
  enter_fiber(self.fiber);
  block.grid->body();
  wait_for_copies(0);
  self.status = Status::kEnded;
  leave_fiber(self.fiber, next_fiber());
}

std::string text_of(const Place& place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash == nullptr ? place.file : slash + 1) + ":" + std::to_string(place.line);
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

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

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

void fail(std::string message, const Place& place) {
  Thread& self = current_thread("fail");
  block.failure = located(self, message + " (" + text_of(place) + ")");
  std::string().swap(message);  // the fiber's frames are abandoned, what they own would be lost
  make_current(nullptr);
  leave_fiber(self.fiber, block.scheduler);
}

void note_wait(const Place& place) {
  current_thread("wait_for_previous").has_waited = true;
  block.has_waited = true;
  std::string error = reveal();
  if (!error.empty()) fail(std::move(error), place);
}

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
  const auto n_copies =
      static_cast<std::ptrdiff_t>(std::accumulate(self.group_sizes.begin(), groups_end, size_t{0}));
  for (std::ptrdiff_t i = 0; i < n_copies; ++i) {
    const Copy& copy = self.copies[static_cast<size_t>(i)];
    std::memcpy(copy.shared, copy.global, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + n_copies);
  self.group_sizes.erase(self.group_sizes.begin(), groups_end);
}

}  // namespace cuda_emulation
