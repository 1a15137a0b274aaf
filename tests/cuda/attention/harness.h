// Tests that register themselves, and what they check with.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace llama2q::testing {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& tests();

// `const Registered a_name{"name", function};`
struct Registered {
  Registered(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void expect(bool condition, const std::string& what) {
  if (!condition) throw Failure(what);
}

// Bytes that differ, none expected.
template <class T>
void expect_equal(const std::vector<T>& found, const std::vector<T>& expected,
                  const std::string& what) {
  expect(found.size() == expected.size(), what + ": sizes differ");
  for (size_t i = 0; i < found.size(); ++i) {
    if (__builtin_memcmp(&found[i], &expected[i], sizeof(T)) == 0) continue;
    throw Failure(what + ": element " + std::to_string(i) + " is " + std::to_string(found[i]) +
                  ", expected " + std::to_string(expected[i]));
  }
}

}  // namespace llama2q::testing
