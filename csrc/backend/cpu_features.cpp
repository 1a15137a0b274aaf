#include "backend/cpu_features.h"

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "base/os/cpus.h"
#include "isa/tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace llama2q {
namespace {

#if defined(__x86_64__)
// Bits of XCR0: the register state that AVX and AVX-512 need saved.
constexpr uint64_t kYmm = 0x6;
constexpr uint64_t kZmm = 0xe6;

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool bit(unsigned word, int index) { return (word >> index & 1u) != 0; }

// Register state that the operating system saves on a context switch.
uint64_t saved_state() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;  // OSXSAVE
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has_avx2() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  return (saved_state() & kYmm) == kYmm && bit(one.c, 12) /* FMA */ && bit(one.c, 28) /* AVX */ &&
         bit(one.c, 29) /* F16C */ && bit(seven.b, 5) /* AVX2 */;
}

bool has_avx512vnni() {
  const Registers seven = cpuid(7, 0);
  return has_avx2() && (saved_state() & kZmm) == kZmm && bit(seven.b, 16) /* F */ &&
         bit(seven.b, 17) /* DQ */ && bit(seven.b, 30) /* BW */ && bit(seven.b, 31) /* VL */ &&
         bit(seven.c, 11) /* VNNI */;
}

bool has_avxvnni() {
#if defined(LLAMA2Q_AVXVNNI_AS_AVX512)
  return has_avx512vnni();
#else
  return has_avx2() && bit(cpuid(7, 1).a, 4);
#endif
}
#endif

std::string names_of(const std::vector<const KernelTable*>& tables) {
  std::string names;
  for (const KernelTable* table : tables) {
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  return names;
}

}  // namespace

const std::vector<const KernelTable*>& available_kernels() {
  static const std::vector<const KernelTable*> tables = [] {
    std::vector<const KernelTable*> found{&kScalarKernels};
#if defined(LLAMA2Q_HAVE_AVX2)
    if (has_avx2()) found.push_back(&kAvx2Kernels);
#endif
#if defined(LLAMA2Q_HAVE_AVXVNNI)
    if (has_avxvnni()) found.push_back(&kAvxVnniKernels);
#endif
#if defined(LLAMA2Q_HAVE_AVX512VNNI)
    if (has_avx512vnni()) found.push_back(&kAvx512VnniKernels);
#endif
#if defined(LLAMA2Q_HAVE_NEON)
    if (arm_features().dotprod) found.push_back(&kNeonKernels);
#endif
#if defined(LLAMA2Q_HAVE_NEON_I8MM)
    if (arm_features().dotprod && arm_features().i8mm) found.push_back(&kNeonI8mmKernels);
#endif
    return found;
  }();
  return tables;
}

std::vector<std::string> compiled_kernels() {
  std::vector<std::string> names{kScalarKernels.name};
#if defined(LLAMA2Q_HAVE_AVX2)
  names.emplace_back("avx2");
#endif
#if defined(LLAMA2Q_HAVE_AVXVNNI)
  names.emplace_back("avxvnni");
#endif
#if defined(LLAMA2Q_HAVE_AVX512VNNI)
  names.emplace_back("avx512vnni");
#endif
#if defined(LLAMA2Q_HAVE_NEON)
  names.emplace_back("neon");
#endif
#if defined(LLAMA2Q_HAVE_NEON_I8MM)
  names.emplace_back("neon_i8mm");
#endif
  return names;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  [[maybe_unused]] const auto add = [&](const char* name, bool present) {
    if (present) names.emplace_back(name);
  };
#if defined(__x86_64__)
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const uint64_t state = saved_state();
  const bool ymm = (state & kYmm) == kYmm, zmm = (state & kZmm) == kZmm;
  add("avx", ymm && bit(one.c, 28));
  add("fma", ymm && bit(one.c, 12));
  add("f16c", ymm && bit(one.c, 29));
  add("avx2", ymm && bit(seven.b, 5));
  add("avxvnni", ymm && bit(seven_one.a, 4));
  add("avx512f", zmm && bit(seven.b, 16));
  add("avx512dq", zmm && bit(seven.b, 17));
  add("avx512bw", zmm && bit(seven.b, 30));
  add("avx512vl", zmm && bit(seven.b, 31));
  add("avx512vnni", zmm && bit(seven.c, 11));
  add("avx512bf16", zmm && bit(seven_one.a, 5));
#elif defined(__aarch64__)
  const ArmFeatures arm = arm_features();
  add("asimddp", arm.dotprod);
  add("i8mm", arm.i8mm);
  add("bf16", arm.bf16);
#endif
  return names;
}

const KernelTable& default_kernels() {
  const char* forced = std::getenv("LLAMA2Q_ISA");
  if (forced != nullptr && *forced != '\0') return kernels_named(forced);
  return *available_kernels().back();
}

const KernelTable& kernels_named(std::string_view name) {
  if (name.empty()) return default_kernels();
  for (const KernelTable* table : available_kernels()) {
    if (name == table->name) return *table;
  }
  throw UnsupportedIsa("instruction set \"" + std::string(name) +
                       "\" is not available; this CPU and build offer: " +
                       names_of(available_kernels()) + ". Unset LLAMA2Q_ISA to use the fastest.");
}

}  // namespace llama2q
