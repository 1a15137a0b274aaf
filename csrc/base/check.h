// Errors that cross the bindings, and the check that raises them. Never included by an ISA unit.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace llama2q {

// An argument has a wrong type, shape or value.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// An activation, a key or value, or a logit became NaN or infinite.
struct NonFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A weight handed to a quantizer is NaN or infinite.
struct NonFiniteWeight : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Weights cannot be represented in the asked type.
struct Unrepresentable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The asked instruction set is unknown, or this CPU does not have it.
struct UnsupportedIsa : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller's cancel flag was set.
struct Cancelled : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument(message);
}

// Product of two sizes that an allocation depends on.
inline int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t product = 0;
  require(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product),
          "size overflow: " + std::to_string(a) + " * " + std::to_string(b));
  return product;
}

}  // namespace llama2q
