// Execution contexts that hand control to each other.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || !defined(__linux__) || defined(CUDA_EMULATION_PORTABLE)
#include <ucontext.h>
#define CUDA_EMULATION_UCONTEXT 1
#endif

namespace cuda_emulation {

struct Fiber {
  unsigned char* stack;  // lowest byte; null for the host thread's own
  size_t stack_bytes;
  void* fake_stack;  // AddressSanitizer's
#ifdef CUDA_EMULATION_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer;
#endif
};

// Makes the fiber call `entry`, which must not return, when it is switched to for the first time.
void prepare_fiber(Fiber& fiber, void (*entry)());
// `entry` begins with this.
void enter_fiber(Fiber& self);
// Returns when something switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);
// Never comes back: `from` may be prepared anew.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

// Stacks with an unreadable page below each. They are kept until the process ends: one of a fiber
// that was abandoned is as good as any.
unsigned char* fiber_stack(size_t index);
size_t fiber_stack_bytes(size_t index);

}  // namespace cuda_emulation
