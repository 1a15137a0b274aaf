// golden [--isa NAME] FILE...: computes the cases of golden files and compares the results with the
// recorded ones bit for bit, on every instruction set that this machine has, or on the one that is
// named by --isa or LLAMA2Q_ISA.
//
// Exit code 0: all equal; 1: one differs, and which is said; 2: there is nothing to compare.
#include "golden.h"

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "backend/cpu_features.h"
#include "base/check.h"
#include "base/float_env.h"

namespace llama2q::golden {

void differs(const std::string& what, int64_t index, uint64_t expected, uint64_t found) {
  char text[120];
  std::snprintf(text, sizeof text, "[%lld] has bits 0x%llx; recorded: 0x%llx",
                static_cast<long long>(index), static_cast<unsigned long long>(found),
                static_cast<unsigned long long>(expected));
  throw Difference(what + text);
}

namespace {

// Leaves the thread as a library built with -ffast-math, or worse, may have left it: denormals are
// zero and sums are cut off. What is computed must not depend on it.
void spoil_float_environment() {
#if defined(__x86_64__)
  _mm_setcsr(0x1F80 | 0x8040 | 0x6000);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{1} << 24 | uint64_t{3} << 22));
#endif
}

void run_case(const Case& one, const KernelTable& table) {
  if (one.op == "sample" || one.op == "logprobs") return run_sampling(one, table);
  const auto run = one.op == "steps" ? run_steps : run_kernel;
  if (!one.has("threads")) return run(one, table, 1);
  for (const int64_t n : one.array<int64_t>("threads")) {
    try {
      run(one, table, static_cast<int>(n));
    } catch (const Difference& difference) {
      throw Difference(std::string(difference.what()) + " (" + std::to_string(n) + " threads)");
    }
  }
}

int replay(int n_arguments, char** arguments) {
  std::string isa;
  std::vector<Case> cases;
  for (int i = 1; i < n_arguments; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--isa" && i + 1 < n_arguments) {
      isa = arguments[++i];
      continue;
    }
    for (Case& one : read_golden(argument)) cases.push_back(std::move(one));
  }
  if (cases.empty()) throw FileError("usage: golden [--isa NAME] FILE...; the files hold cases");
  const char* forced = std::getenv("LLAMA2Q_ISA");
  if (isa.empty() && forced != nullptr) isa = forced;
  std::printf("default: %s\navailable:", default_kernels().name);
  for (const KernelTable* table : available_kernels()) std::printf(" %s", table->name);
  std::printf("\nfeatures:");
  for (const std::string& name : cpu_features()) std::printf(" %s", name.c_str());
  std::printf("\n");
  std::vector<const KernelTable*> tables = available_kernels();
  if (!isa.empty()) tables = {&kernels_named(isa)};
  spoil_float_environment();
  for (const KernelTable* table : tables) {
    for (const Case& one : cases) {
      try {
        run_case(one, *table);
      } catch (const FileError&) {
        throw;
      } catch (const std::exception& error) {
        std::printf("%s: %s: %s\n", table->name, one.name.c_str(), error.what());
        return 1;
      }
    }
    std::printf("%s: %lld cases equal\n", table->name, static_cast<long long>(cases.size()));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace llama2q::golden

int main(int n_arguments, char** arguments) {
  try {
    return llama2q::golden::replay(n_arguments, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "golden: %s\n", error.what());
    return 2;
  }
}
