// select(): the k largest, against a stable sort.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "checks.h"
#include "cuda/select.h"
#include "harness.h"
#include "step.h"

namespace checks {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Selected {
  std::vector<int32_t> ids;
  std::vector<float> values;
  int32_t fault;
};

Selected select(const std::vector<float>& logits, int64_t n_rows, int64_t k) {
  const int64_t vocab_size = static_cast<int64_t>(logits.size()) / n_rows;
  const Buffer<float> rows(logits);
  Buffer<float> values(static_cast<size_t>(n_rows * k));
  Buffer<int32_t> ids(static_cast<size_t>(n_rows * k));
  Buffer<uint64_t> scratch(static_cast<size_t>(cuda::select_keys(n_rows, vocab_size, k)));
  Buffer<uint32_t> tickets(std::vector<uint32_t>(static_cast<size_t>(n_rows)));
  Buffer<int32_t> fault(std::vector<int32_t>{0});
  cuda::select(stream(), {.logits = rows.data(),
                          .n_rows = n_rows,
                          .vocab_size = vocab_size,
                          .k = k,
                          .values = values.data(),
                          .ids = ids.data(),
                          .scratch = scratch.data(),
                          .tickets = tickets.data(),
                          .fault = fault.data(),
                          .fault_code = 9});
  for (const uint32_t ticket : tickets.read()) expect(ticket == 0, "tickets are left");
  return {ids.read(), values.read(), fault.read()[0]};
}

void expect_right(const std::vector<float>& logits, int64_t n_rows, int64_t k,
                  const std::string& what) {
  const auto vocab_size = static_cast<int64_t>(logits.size()) / n_rows;
  const Selected found = select(logits, n_rows, k);
  expect(found.fault == 0, what + ": a fault was raised");
  std::vector<int32_t> ids;
  std::vector<float> values;
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* x = logits.data() + row * vocab_size;
    std::vector<int32_t> order(static_cast<size_t>(vocab_size));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
    for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
      ids.push_back(order[i]);
      values.push_back(x[order[i]] + 0.0f);
    }
  }
  expect_equal(found.ids, ids, what + ": ids");
  expect_equal(found.values, values, what + ": values");
}

}  // namespace

void check_select_sizes() {
  std::mt19937 random(3);
  std::normal_distribution<float> draw(0.0f, 3.0f);
  for (const int64_t vocab_size : {1, 7, 512, 2047, 2048, 2049, 6000}) {
    for (const int64_t k : {1, 2, 40, 64}) {
      if (k > vocab_size) continue;
      for (const int64_t n_rows : {1, 3}) {
        std::vector<float> logits(static_cast<size_t>(n_rows * vocab_size));
        for (float& x : logits) x = draw(random);
        expect_right(logits, n_rows, k,
                     "vocab_size " + std::to_string(vocab_size) + ", k " + std::to_string(k));
      }
    }
  }
}

// More candidates than are sorted at once: 33 chunks of 64.
void check_select_large_vocabulary() {
  std::vector<float> logits(33 * 2048);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 7919 % 10007);
  expect_right(logits, 1, 64, "large vocabulary");
  expect_right(logits, 1, 1, "large vocabulary");
}

// The lower id first; -0 is 0; -inf is allowed.
void check_select_ties() {
  std::mt19937 random(4);
  const float few[] = {1.0f, 0.0f, -0.0f, -1.0f, -kInfinity, 0x1p-149f, 3e38f};
  for (const int64_t k : {1, 33, 64}) {
    std::vector<float> logits(4500);
    for (float& x : logits) x = few[random() % 7];
    expect_right(logits, 1, k, "ties");
    for (float& x : logits) x = random() % 2 == 0 ? 0.0f : -0.0f;
    expect_right(logits, 1, k, "zeros");
    expect_right(std::vector<float>(4500, -kInfinity), 1, k, "-inf");
  }
}

void check_select_faults() {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const size_t at : {size_t{0}, size_t{2048}, size_t{4499}}) {
      std::vector<float> logits(4500, 1.0f);
      logits[at] = bad;
      expect(select(logits, 1, 1).fault == 9, "argmax takes what is not finite");
      expect(select(logits, 1, 5).fault == 9, "top-k takes what is not finite");
    }
  }
}

}  // namespace checks
