// The linear algebra of calibration: every instruction set beside the scalar one, on arrays of
// exact size.
#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "base/types.h"
#include "calibrate/ldl.h"
#include "calibrate/product.h"
#include "input.h"

namespace llama2q::fuzz {
namespace {

Exact<float> reals(Input& input, int64_t n) {
  Exact<float> values(n);
  const bool wild = input.byte() % 8 == 0;
  Noise noise(input.byte());
  for (float& value : values) value = wild ? input.real() : noise.real();
  return values;
}

Exact<float> copy_of(const Exact<float>& from) {
  Exact<float> to(from.size());
  std::memcpy(to.data(), from.data(), static_cast<size_t>(from.size()) * sizeof(float));
  return to;
}

// NaN's bits are not part of the contract.
void expect_equal_reals(const char* what, const char* isa, const Exact<float>& a,
                        const Exact<float>& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    const float x = a.data()[i], y = b.data()[i];
    if (float_bits(x) != float_bits(y) && !(x != x && y != y)) fail(what, isa);
  }
}

void fuzz_product(Input& input, int threads) {
  const bool lower = input.byte() % 2 == 0;
  const int64_t m = input.between(1, 120), n = lower ? m : input.between(1, 120);
  const int64_t depth = input.between(0, 20);
  const Exact<float> a = reals(input, depth * m), b = reals(input, depth * n);
  const Exact<float> c = reals(input, m * n);
  const bool subtract = input.byte() % 2 == 0;
  const auto run = [&](const KernelTable& table, int n_threads) {
    Exact<float> sum = copy_of(c);
    ThreadPool pool(n_threads);
    Products(table, pool)
        .add({.a = a.data(),
              .b = b.data(),
              .c = sum.data(),
              .m = m,
              .n = n,
              .depth = depth,
              .a_stride = m,
              .b_stride = n,
              .c_stride = n,
              .subtract = subtract,
              .lower = lower});
    return sum;
  };
  const Exact<float> expected = run(*available_kernels().front(), 1);
  for (int64_t i = 0; lower && i < m; ++i) {
    for (int64_t j = i + 1; j < n; ++j) {
      if (float_bits(expected.data()[i * n + j]) != float_bits(c.data()[i * n + j])) {
        fail("a product wrote above the diagonal", "scalar");
      }
    }
  }
  for (const KernelTable* table : available_kernels()) {
    expect_equal_reals("a product differs", table->name, expected, run(*table, threads));
  }
}

void fuzz_ldl(Input& input, int threads) {
  const int64_t n = input.between(1, 190);
  Exact<float> h = reals(input, n * n);
  const float diagonal = static_cast<float>(input.byte());
  for (int64_t i = 0; i < n; ++i) h[i * n + i] += diagonal;
  const auto run = [&](const KernelTable& table, int n_threads, Exact<float>& factors) {
    ThreadPool pool(n_threads);
    return ldl(table, pool, factors.data(), n, [] {});
  };
  Exact<float> expected = copy_of(h);
  const int64_t bad = run(*available_kernels().front(), 1, expected);
  if (bad < -1 || bad >= n) fail("ldl found a pivot that there is not", "scalar");
  for (const KernelTable* table : available_kernels()) {
    Exact<float> found = copy_of(h);
    if (run(*table, threads, found) != bad) fail("ldl's first bad pivot differs", table->name);
    if (bad < 0) expect_equal_reals("ldl differs", table->name, expected, found);
  }
}

}  // namespace

void fuzz_calibrate(Input& input) {
  const FloatEnv environment;
  const uint8_t kind = input.byte();
  // Rarely several: on a busy machine each phase waits for the system to run them.
  const int threads = kind % 16 == 0 ? 3 : 1;
  if (kind / 16 % 2 == 0) return fuzz_product(input, threads);
  fuzz_ldl(input, threads);
}

}  // namespace llama2q::fuzz
