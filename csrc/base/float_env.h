// The floating-point environment of the numeric contract: round to nearest, denormals kept.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace llama2q {

// Sets MXCSR 0x1F80 / FPCR 0 for its scope and restores what was there: a library built with
// -ffast-math may have turned denormals off for this thread. Compilers do not know that arithmetic
// depends on it and may move an operation across: what is computed under it must lie behind a call
// into another translation unit.
class FloatEnv {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatEnv() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatEnv() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
  FloatEnv() noexcept {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatEnv() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
#error "llama2q: set the floating-point environment of this architecture here"
#endif
  FloatEnv(const FloatEnv&) = delete;
  FloatEnv& operator=(const FloatEnv&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace llama2q
