// attention_tests [--list] [NAME...]: all tests, or those named; 1 if one failed.
#include <cstdio>
#include <cstring>
#include <exception>

#include "emulation/control.h"
#include "harness.h"

namespace llama2q::testing {

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

namespace {

bool is_wanted(const Test& test, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], test.name) == 0) return true;
  }
  return argc == 1;
}

bool passes(const Test& test) {
  try {
    test.run();
    std::printf("ok %s\n", test.name);
    return true;
  } catch (const std::exception& error) {
    std::printf("FAILED %s: %s\n", test.name, error.what());
    return false;
  }
}

int run(int argc, char** argv) {
  cuda_emulation::machine().major = 9;
  cuda_emulation::machine().minor = 0;
  const bool list = argc == 2 && std::strcmp(argv[1], "--list") == 0;
  int n_run = 0, n_failed = 0;
  for (const Test& test : tests()) {
    if (list) {
      std::printf("%s\n", test.name);
    } else if (is_wanted(test, argc, argv)) {
      ++n_run;
      n_failed += passes(test) ? 0 : 1;
    }
  }
  if (list) return 0;
  std::printf("%d of %d tests passed\n", n_run - n_failed, n_run);
  return n_failed == 0 && n_run > 0 ? 0 : 1;
}

}  // namespace
}  // namespace llama2q::testing

int main(int argc, char** argv) { return llama2q::testing::run(argc, argv); }
