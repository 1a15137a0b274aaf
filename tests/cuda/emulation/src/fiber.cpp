#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "sanitizers.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATION_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATION_ASAN 1
#endif
#ifdef CUDA_EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

namespace {

// Instrumented frames are several times larger.
#ifdef CUDA_EMULATION_ASAN
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

#ifdef CUDA_EMULATION_ASAN
// Who switched last: its stack becomes known when the other side arrives.
Fiber* leaving = nullptr;

void announce(Fiber& from, Fiber& to, bool comes_back) {
  leaving = &from;
  __sanitizer_start_switch_fiber(comes_back ? &from.fake_stack : nullptr, to.stack, to.stack_bytes);
}

void arrive(Fiber& self) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &bytes);
  self.fake_stack = nullptr;
  leaving->stack = static_cast<unsigned char*>(const_cast<void*>(bottom));
  leaving->stack_bytes = bytes;
}
#else
void announce(Fiber&, Fiber&, bool) {}
void arrive(Fiber&) {}
#endif

}  // namespace

#ifdef CUDA_EMULATION_UCONTEXT

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  permit(fiber.stack, fiber.stack_bytes);  // frames that were abandoned there
  fiber.fake_stack = nullptr;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

namespace {
void swap(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
}  // namespace

#else

// System V ABI: a callee keeps rbx, rbp and r12 to r15. The floating-point environment is not
// switched: all fibers share the host thread's.
extern "C" void cuda_emulation_swap(void** from, void* to);

asm(R"(
.text
.p2align 4
.type cuda_emulation_swap, @function
.hidden cuda_emulation_swap
.globl cuda_emulation_swap
cuda_emulation_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_swap, . - cuda_emulation_swap
)");

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  permit(fiber.stack, fiber.stack_bytes);  // frames that were abandoned there
  fiber.fake_stack = nullptr;
  // From the top: two words that end a backtrace and keep the ABI's alignment (8 modulo 16 where a
  // function begins), the address that `ret` takes, six registers.
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + fiber.stack_bytes);
  *--top = 0;
  *--top = 0;
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
}

namespace {
void swap(Fiber& from, Fiber& to) { cuda_emulation_swap(&from.stack_pointer, to.stack_pointer); }
}  // namespace

#endif

void enter_fiber(Fiber& self) { arrive(self); }

void switch_fiber(Fiber& from, Fiber& to) {
  announce(from, to, true);
  swap(from, to);
  arrive(from);
}

void leave_fiber(Fiber& from, Fiber& to) {
  announce(from, to, false);
  swap(from, to);
  std::abort();
}

unsigned char* fiber_stack(size_t index) {
  static std::vector<unsigned char*> stacks;
  while (stacks.size() <= index) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
    stacks.push_back(static_cast<unsigned char*>(memory) + page);
  }
  return stacks[index];
}

// Tops of stacks at one offset of their pages would share a few lines of the first-level cache.
size_t fiber_stack_bytes(size_t index) { return kStackBytes - index % 32 * 128; }

}  // namespace cuda_emulation
