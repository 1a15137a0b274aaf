// Up to 32 tokens.
#include <algorithm>

#include "activations.h"
#include "checks.h"

namespace checks {

namespace {

using llama2q::Epilogue;

constexpr int64_t kGroups[] = {32, 64, 128};

}  // namespace

// Scales of 1: outputs are the dots themselves, exactly.
void check_integers() {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : kGroups) {
      for (const int64_t cols : {32, 172, 600}) {
        const Matrix m = integer_matrix(kind, 40, cols, group_size);
        const PlacedMatrix placed(m);
        for (const int64_t n : {1, 2, 8, 9, 16, 17, 32}) {
          Call call;
          call.matrices = {&placed};
          call.x = integer_rows(n, cols, group_size);
          call.n = n;
          const std::vector<float> y = run_call(call)[0];
          for (int64_t t = 0; t < n; ++t) {
            for (int64_t row = 0; row < m.rows; ++row) {
              int64_t dot = 0;
              for (int64_t i = 0; i < cols; ++i) {
                dot += m.value(row, i) *
                       static_cast<int64_t>(call.x[static_cast<size_t>(t * cols + i)]);
              }
              expect(
                  y[static_cast<size_t>(t * m.rows + row)] == static_cast<float>(dot),
                  describe(m, n) + ": token " + std::to_string(t) + ", row " + std::to_string(row));
            }
          }
        }
      }
    }
  }
}

void check_few_tokens() {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : kGroups) {
      for (const int64_t cols : {172, 1100}) {
        const Matrix m = random_matrix(kind, 88, cols, group_size);
        const PlacedMatrix placed(m);
        for (const int64_t n : {1, 2, 3, 7, 8, 11, 16, 21}) {
          Call call;
          call.matrices = {&placed};
          call.x = random_rows(n, cols);
          call.n = n;
          const std::vector<float> y = run_call(call)[0];
          expect(call.fault == 0, "a fault in finite rows");
          expect_close(y, multiply(m, quantize_all(call.x, n, m)), describe(m, n));
        }
      }
    }
  }
}

// A token's outputs are the same bits in a step of any size, with the norm and without.
void check_steps_agree() {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : kGroups) {
      const int64_t cols = 1100, n = 32;
      const Matrix m = random_matrix(kind, 40, cols, group_size);
      const PlacedMatrix placed(m);
      for (const bool normed : {false, true}) {
        Call call;
        call.matrices = {&placed};
        if (normed) call.norm = random_norm(cols);
        const std::vector<float> x = random_rows(n, cols);
        std::vector<float> alone;
        for (int64_t t = 0; t < n; ++t) {
          call.x.assign(x.begin() + t * cols, x.begin() + (t + 1) * cols);
          const std::vector<float> y = run_call(call)[0];
          alone.insert(alone.end(), y.begin(), y.end());
        }
        for (int64_t together = 2; together <= n; ++together) {
          if (together > 17 && together < n) continue;
          const int64_t first = random_int(0, static_cast<int>(n - together));
          call.n = together;
          call.x.assign(x.begin() + first * cols, x.begin() + (first + together) * cols);
          Device device;
          device.limits.n_multiprocessors = random_int(1, 4);
          const std::vector<float> y = run_call(call, device)[0];
          expect_same(y.data(), alone.data() + first * m.rows, together * m.rows,
                      describe(m, together));
        }
      }
    }
  }
}

// Three matrices of their own kinds and rows in one call; some dense.
void check_several_matrices() {
  const int64_t cols = 172;
  const Kind kKinds[][3] = {{Kind::kLookup, Kind::kLookup, Kind::kLookup},
                            {Kind::kUniform, Kind::kInt8, Kind::kLookup},
                            {Kind::kInt8, Kind::kLookup, Kind::kInt8},
                            {Kind::kLookup, Kind::kF16, Kind::kUniform}};
  for (const auto& kinds : kKinds) {
    const Matrix a = random_matrix(kinds[0], 72, cols, 64),
                 b = random_matrix(kinds[1], 20, cols, 64),
                 c = random_matrix(kinds[2], 36, cols, 64);
    const PlacedMatrix pa(a), pb(b), pc(c);
    for (const int64_t n : {1, 6, 13, 40}) {
      for (const int64_t n_multiprocessors : {1, 3, 50}) {
        Call call;
        call.matrices = {&pa, &pb, &pc};
        call.x = random_rows(n, cols);
        call.n = n;
        Device device;
        device.limits.n_multiprocessors = n_multiprocessors;
        const std::vector<std::vector<float>> y = run_call(call, device);
        const Matrix* const matrices[] = {&a, &b, &c};
        for (size_t m = 0; m < 3; ++m) {
          const Matrix& matrix = *matrices[m];
          expect_close(y[m],
                       matrix.quantized() ? multiply(matrix, quantize_all(call.x, n, matrix))
                                          : multiply(matrix, call.x.data(), n),
                       describe(matrix, n));
        }
      }
    }
  }
}

void check_add() {
  const Matrix m = random_matrix(Kind::kLookup, 40, 172, 64);
  const PlacedMatrix placed(m);
  for (const int64_t n : {1, 5, 20}) {
    Call call;
    call.matrices = {&placed};
    call.x = random_rows(n, m.cols);
    call.n = n;
    const std::vector<float> product = run_call(call)[0];
    call.y = random_rows(n, m.rows);
    call.epilogue = Epilogue::kAdd;
    std::vector<float> wanted = call.y;
    std::transform(wanted.begin(), wanted.end(), product.begin(), wanted.begin(), std::plus<>());
    expect_same(run_call(call)[0].data(), wanted.data(), n * m.rows, describe(m, n));
  }
}

void check_swiglu() {
  for (const Kind kind : {Kind::kLookup, Kind::kUniform, Kind::kInt8, Kind::kBf16}) {
    const int64_t hidden = 172, cols = 172;
    const Matrix both =
        interleaved(random_matrix(kind, hidden, cols, 64), random_matrix(kind, hidden, cols, 64));
    const PlacedMatrix placed(both);
    for (const int64_t n : {1, 4, 12, 40}) {
      Call call;
      call.matrices = {&placed};
      call.x = random_rows(n, cols);
      call.n = n;
      call.epilogue = Epilogue::kSwiglu;
      call.hidden = hidden;
      const std::vector<float> y = run_call(call)[0];
      const Outputs products = both.quantized() ? multiply(both, quantize_all(call.x, n, both))
                                                : multiply(both, call.x.data(), n);
      expect_close(y, swiglu(products, n, hidden), describe(both, n));
    }
  }
}

// Where a block may have 64 KiB, 16 tokens are two tiles of 8, and a wide row is quantized before.
void check_little_shared_memory() {
  const Matrix m = random_matrix(Kind::kLookup, 16, 9000, 32);
  const PlacedMatrix placed(m);
  for (const int64_t n : {1, 16}) {
    Call call;
    call.matrices = {&placed};
    call.x = random_rows(n, m.cols);
    call.n = n;
    Device small;
    small.limits.shared_bytes = 64 * 1024;
    const std::vector<float> wanted = run_call(call)[0];
    expect_same(run_call(call, small)[0].data(), wanted.data(), n * m.rows, describe(m, n));
    expect_close(wanted, multiply(m, quantize_all(call.x, n, m)), describe(m, n));
  }
}

void check_dense() {
  for (const Kind kind : kDense) {
    for (const int64_t cols : {16, 172, 301}) {
      const Matrix m = random_matrix(kind, 40, cols, 0);
      const PlacedMatrix placed(m);
      std::vector<float> alone;
      const std::vector<float> x = random_rows(9, cols);
      for (const int64_t n : {9, 1, 4}) {
        Call call;
        call.matrices = {&placed};
        call.x.assign(x.begin(), x.begin() + n * cols);
        call.n = n;
        const std::vector<float> y = run_call(call)[0];
        expect_close(y, multiply(m, call.x.data(), n), describe(m, n));
        if (n == 9) alone = y;
        expect_same(y.data(), alone.data(), n * m.rows, describe(m, n));
      }
    }
  }
}

}  // namespace checks
