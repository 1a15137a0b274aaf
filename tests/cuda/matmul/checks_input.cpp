// Norms and quantized activations.
#include <cmath>
#include <limits>

#include "activations.h"
#include "checks.h"
#include "cuda/prepare.h"

namespace checks {

namespace {

using llama2q::cuda::Activations;
using llama2q::cuda::FaultSite;

constexpr int64_t kShapes[][2] = {{1, 172}, {5, 172}, {3, 45}, {17, 2500}, {2, 4096}};  // n, cols

std::vector<float> norm_on_device(const std::vector<float>& x, const std::vector<float>& norm,
                                  int64_t n, int32_t* fault_out = nullptr) {
  const auto cols = static_cast<int64_t>(norm.size());
  const Buffer<float> rows(x), weights(norm), y(x.size());
  const Buffer<int32_t> fault(std::vector<int32_t>{0});
  llama2q::cuda::rms_norm(test_stream(), rows.data(), n, cols, weights.data(), kEps, y.data(),
                          {fault.data(), kFaultCode});
  if (fault_out != nullptr) *fault_out = fault.read()[0];
  return y.read();
}

}  // namespace

// The mean of squares: in each of 512 chains cols / 512 roundings and then 14 sums; its root and
// inverse halve that and add three; two products.
void check_rms_norm() {
  for (const auto& [n, cols] : kShapes) {
    const std::vector<float> x = random_rows(n, cols), norm = random_norm(cols);
    const std::vector<float> y = norm_on_device(x, norm, n);
    Outputs wanted;
    for (int64_t t = 0; t < n; ++t) {
      double squares = 0.0;
      for (int64_t i = 0; i < cols; ++i) {
        const auto value = static_cast<double>(x[static_cast<size_t>(t * cols + i)]);
        squares += value * value;
      }
      const double r =
          1.0 / std::sqrt(squares / static_cast<double>(cols) + static_cast<double>(kEps));
      for (int64_t i = 0; i < cols; ++i) {
        const double value = static_cast<double>(x[static_cast<size_t>(t * cols + i)]) * r *
                             static_cast<double>(norm[static_cast<size_t>(i)]);
        const double roundings = static_cast<double>(cols / 512 + 16) / 2 + 6;
        wanted.value.push_back(value);
        wanted.tolerance.push_back(std::fabs(value) * roundings * 0x1p-24);
      }
    }
    expect_close(y, wanted, "rms_norm of " + std::to_string(cols));
  }
}

// Codes and scales are the contract's, of the normed row, to the bit.
void check_records() {
  for (const auto& [n, cols] : kShapes) {
    for (const int64_t group_size : {32, 64, 128}) {
      for (const int64_t width : {1, 8, 16, 64}) {
        for (const bool normed : {false, true}) {
          const std::vector<float> x = random_rows(n, cols), norm = random_norm(cols);
          const std::vector<float> rows = normed ? norm_on_device(x, norm, n) : x;
          const Buffer<float> source(x), weights(norm);
          const Buffer<int32_t> fault(std::vector<int32_t>{0});
          const Buffer<uint8_t> memory(
              static_cast<size_t>(llama2q::cuda::activation_bytes(n, width, cols, group_size)));
          const Activations out =
              llama2q::cuda::place_activations(n, width, cols, group_size, memory.data());
          llama2q::cuda::quantize_rows(test_stream(), source.data(), n, cols, group_size,
                                       normed ? weights.data() : nullptr, kEps, out,
                                       {fault.data(), kFaultCode});
          expect(fault.read()[0] == 0, "a fault in finite rows");
          const std::vector<uint8_t> records = memory.read();
          const int64_t unit_columns = std::max<int64_t>(group_size, 64);
          const llama2q::cuda::RecordLayout at =
              llama2q::cuda::record_layout(static_cast<int>(group_size), static_cast<int>(width));
          for (int64_t token = 0; token < out.n_tiles * width; ++token) {
            QuantizedRow wanted;
            if (token < n) wanted = quantize(rows.data() + token * cols, cols, group_size);
            wanted.codes.resize(static_cast<size_t>(out.n_units * unit_columns));
            wanted.scales.resize(static_cast<size_t>(out.n_units * unit_columns / group_size));
            const int64_t i = token % width;
            for (int64_t col = 0; col < out.n_units * unit_columns; ++col) {
              const unsigned char* const record =
                  records.data() + (token / width * out.n_units + col / unit_columns) * at.bytes;
              const int64_t step = col % unit_columns / 64, of_step = col % 64;
              const int64_t byte = 16 * (of_step % 32 / 8) + 8 * (of_step / 32) + of_step % 8;
              const auto code = static_cast<int8_t>(record[(step * width + i) * 64 + byte]);
              expect(code == wanted.codes[static_cast<size_t>(col)],
                     "code of token " + std::to_string(token) + ", column " + std::to_string(col));
              if (col % group_size != 0) continue;
              const int64_t group = col % unit_columns / group_size;
              float scale;
              std::memcpy(&scale, record + at.scales + (group * width + i) * 4, 4);
              expect(scale == wanted.scales[static_cast<size_t>(col / group_size)], "scale");
              int32_t sum = 0, starts[4];
              for (int64_t k = col; k < col + group_size; ++k) {
                sum += wanted.codes[static_cast<size_t>(k)];
              }
              std::memcpy(starts, record + at.starts + (group * ((width + 1) / 2) + i / 2) * 16,
                          16);
              expect(starts[i % 2] == 0x4B400000 - 128 * sum && starts[i % 2 + 2] == starts[i % 2],
                     "start");
            }
          }
        }
      }
    }
  }
}

void check_input_faults() {
  const float kBad[] = {std::numeric_limits<float>::infinity(), std::nanf("")};
  const int64_t cols = 172;
  for (const Kind kind : {Kind::kLookup, Kind::kBf16}) {
    const Matrix matrix = random_matrix(kind, 20, cols, 64);
    const PlacedMatrix placed(matrix);
    for (const float bad : kBad) {
      for (const int64_t n : {1, 5, 40}) {
        for (const bool normed : {false, true}) {
          Call call;
          call.matrices = {&placed};
          call.x = random_rows(n, cols);
          call.n = n;
          if (normed) call.norm = random_norm(cols);
          run_call(call);
          expect(call.fault == 0, "a fault in finite rows");
          call.x.back() = bad;
          run_call(call);
          expect(call.fault == kFaultCode,
                 "no fault of " + std::to_string(bad) + " among " + std::to_string(n) + " tokens");
        }
      }
    }
  }
}

}  // namespace checks
