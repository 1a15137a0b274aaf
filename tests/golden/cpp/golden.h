// What the parts of this program share: comparing, and the ops that a case may name.
#pragma once

#include <string>

#include "golden_file.h"
#include "kernels/args.h"
#include "quant/matrix.h"

namespace llama2q::golden {

// A result differs from the recorded one.
struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void differs(const std::string& what, int64_t index, uint64_t expected,
                          uint64_t found);

// Throws Difference unless the arrays are equal bit for bit; any NaN equals any other.
template <class T>
void expect(const std::string& what, std::span<const T> expected, std::span<const T> found) {
  if (expected.size() != found.size()) {
    throw Difference(what + " has " + std::to_string(found.size()) +
                     " elements; recorded: " + std::to_string(expected.size()));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const T a = expected[i], b = found[i];
    if (std::memcmp(&a, &b, sizeof(T)) == 0 || (a != a && b != b)) continue;
    uint64_t bits[2] = {};
    std::memcpy(&bits[0], &a, sizeof(T));
    std::memcpy(&bits[1], &b, sizeof(T));
    differs(what, static_cast<int64_t>(i), bits[0], bits[1]);
  }
}

// The matrix whose arrays are NAME.codes, NAME.scales and NAME.grid; NAME.shape is i64 [kind, rows,
// cols, group_size].
MatrixView matrix_of(const Case& one, const std::string& name);
EmbeddingView embedding_of(const Case& one, const std::string& name);

// Runs one case on one instruction set, with n_threads where the op takes threads.
void run_kernel(const Case& one, const KernelTable& table, int n_threads);
void run_sampling(const Case& one, const KernelTable& table);
void run_steps(const Case& one, const KernelTable& table, int n_threads);

}  // namespace llama2q::golden
