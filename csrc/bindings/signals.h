// Ctrl-C in long calls.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

namespace llama2q {

// Called often while the GIL is released: looks for Python's signals at most every 100 ms and
// throws what their handlers raise.
class SignalCheck {
 public:
  void operator()() {
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace llama2q
