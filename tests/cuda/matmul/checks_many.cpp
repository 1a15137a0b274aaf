// More than 32 tokens: prefill.
#include "activations.h"
#include "checks.h"

namespace checks {

namespace {

using llama2q::Epilogue;

// Multiprocessors such that tiles of tokens share blocks, have blocks of their own, or share K out.
constexpr int64_t kMultiprocessors[] = {1, 6, 40};

}  // namespace

void check_integers_of_many() {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : {32, 64, 128}) {
      const int64_t cols = 600, n = 70;
      const Matrix m = integer_matrix(kind, 140, cols, group_size);
      const PlacedMatrix placed(m);
      Call call;
      call.matrices = {&placed};
      call.x = integer_rows(n, cols, group_size);
      call.n = n;
      for (const int64_t n_multiprocessors : kMultiprocessors) {
        Device device;
        device.limits.n_multiprocessors = n_multiprocessors;
        const std::vector<float> y = run_call(call, device)[0];
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t row = 0; row < m.rows; ++row) {
            int64_t dot = 0;
            for (int64_t i = 0; i < cols; ++i) {
              dot +=
                  m.value(row, i) * static_cast<int64_t>(call.x[static_cast<size_t>(t * cols + i)]);
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

void check_many_tokens() {
  for (const Kind kind : kQuantized) {
    for (const int64_t group_size : {32, 64, 128}) {
      for (const int64_t rows : {20, 172}) {
        const Matrix m = random_matrix(kind, rows, 172, group_size);
        const PlacedMatrix placed(m);
        for (const int64_t n : {33, 64, 65, 130}) {
          Call call;
          call.matrices = {&placed};
          call.x = random_rows(n, m.cols);
          call.n = n;
          Device device;
          device.limits.n_multiprocessors = kMultiprocessors[n % 3];
          const std::vector<float> y = run_call(call, device)[0];
          expect_close(y, multiply(m, quantize_all(call.x, n, m)), describe(m, n));
        }
      }
    }
  }
}

void check_many_epilogues() {
  const int64_t hidden = 172, cols = 172, n = 75;
  for (const Kind kind : kQuantized) {
    const Matrix both =
        interleaved(random_matrix(kind, hidden, cols, 64), random_matrix(kind, hidden, cols, 64));
    const PlacedMatrix placed(both);
    Call call;
    call.matrices = {&placed};
    call.x = random_rows(n, cols);
    call.norm = random_norm(cols);
    call.n = n;
    for (const int64_t n_multiprocessors : kMultiprocessors) {
      Device device;
      device.limits.n_multiprocessors = n_multiprocessors;
      call.epilogue = Epilogue::kStore;
      call.hidden = 0;
      call.y.clear();
      const std::vector<float> product = run_call(call, device)[0];
      Outputs exactly;
      for (const float value : product) {
        exactly.value.push_back(static_cast<double>(value));
        exactly.tolerance.push_back(0.0);
      }
      call.epilogue = Epilogue::kAdd;
      call.y = random_rows(n, both.rows);
      std::vector<float> wanted = call.y;
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += product[i];
      expect_same(run_call(call, device)[0].data(), wanted.data(), n * both.rows, "added");
      call.epilogue = Epilogue::kSwiglu;
      call.hidden = hidden;
      call.y.clear();
      expect_close(run_call(call, device)[0], swiglu(exactly, n, hidden), "swiglu");
    }
  }
}

// Parts of K are added in a fixed order: from run to run the same bits, whatever comes first.
void check_splits() {
  const Matrix m = random_matrix(Kind::kLookup, 100, 2100, 64);
  const PlacedMatrix placed(m);
  Call call;
  call.matrices = {&placed};
  call.n = 40;
  call.x = random_rows(call.n, m.cols);
  Device device;
  device.limits.n_multiprocessors = 8;
  const std::vector<float> first = run_call(call, device)[0];
  expect_close(first, multiply(m, quantize_all(call.x, call.n, m)), describe(m, call.n));
  for (int i = 0; i < 4; ++i) {
    expect_same(run_call(call, device)[0].data(), first.data(), call.n * m.rows, "again");
  }
}

}  // namespace checks
