#include "activations.h"

#include <algorithm>
#include <cmath>

namespace checks {

namespace {

// Half a unit in the last place, relative: the error of one float32 operation.
constexpr double kRounding = 0x1p-24;

}  // namespace

std::string describe(const Matrix& m, int64_t n) {
  return std::string(name_of(m.kind)) + " " + std::to_string(m.rows) + " x " +
         std::to_string(m.cols) + ", groups of " + std::to_string(m.group_size) + ", " +
         std::to_string(n) + " tokens";
}

std::vector<float> random_rows(int64_t n, int64_t cols) {
  std::vector<float> x(static_cast<size_t>(n * cols));
  for (float& value : x) value = std::normal_distribution<float>(0.0f, 1.0f)(generator());
  for (int64_t t = 0; t < n; ++t) {
    float* const row = x.data() + t * cols;
    const int64_t first = random_int(0, static_cast<int>(cols) - 1);
    const int kind = random_int(0, 3);
    for (int64_t i = first; i < std::min<int64_t>(first + 130, cols); ++i) {
      if (kind == 0) row[i] = 0.0f;
      if (kind == 1) row[i] *= 0x1p-120f;  // below the smallest amax
      if (kind == 2) row[i] *= 1e15f;
    }
    row[0] = -0.0f;
  }
  return x;
}

std::vector<float> integer_rows(int64_t n, int64_t cols, int64_t group_size) {
  std::vector<float> x(static_cast<size_t>(n * cols));
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t col = static_cast<int64_t>(i) % cols;
    const int extreme = random_int(0, 1) == 0 ? 127 : -127;
    x[i] = static_cast<float>(col % group_size == 0 ? extreme : random_int(-127, 127));
  }
  return x;
}

std::vector<float> random_norm(int64_t n) {
  std::vector<float> norm(static_cast<size_t>(n));
  for (float& x : norm) x = std::uniform_real_distribution<float>(0.5f, 1.5f)(generator());
  return norm;
}

QuantizedRow quantize(const float* x, int64_t cols, int64_t group_size) {
  QuantizedRow out;
  for (int64_t begin = 0; begin < cols; begin += group_size) {
    float amax = 0.0f;
    for (int64_t i = begin; i < std::min(begin + group_size, cols); ++i) {
      amax = std::max(amax, std::fabs(x[i]));
    }
    const bool zero = amax < 0x1p-100f;
    const float inverse = zero ? 0.0f : 127.0f / amax;
    out.scales.push_back(zero ? 0.0f : amax / 127.0f);
    for (int64_t i = begin; i < begin + group_size; ++i) {
      const bool present = i < cols && !zero;
      out.codes.push_back(present ? static_cast<int>(std::nearbyint(x[i] * inverse)) : 0);
    }
  }
  return out;
}

std::vector<QuantizedRow> quantize_all(const std::vector<float>& x, int64_t n, const Matrix& m) {
  std::vector<QuantizedRow> rows;
  for (int64_t t = 0; t < n; ++t) {
    rows.push_back(quantize(x.data() + t * m.cols, m.cols, m.group_size));
  }
  return rows;
}

// Each output is a sum of products dot * (w_scale * a_scale): one rounding in the scale, one in
// each addition, of which there are n_groups + 8 slices on any path.
Outputs multiply(const Matrix& m, const std::vector<QuantizedRow>& rows) {
  Outputs out;
  for (const QuantizedRow& x : rows) {
    for (int64_t r = 0; r < m.rows; ++r) {
      double sum = 0.0, magnitude = 0.0;
      for (int64_t g = 0; g < m.n_groups; ++g) {
        int64_t dot = 0;
        for (int64_t i = g * m.group_size; i < (g + 1) * m.group_size; ++i) {
          if (i < m.cols) dot += m.value(r, i) * x.codes[static_cast<size_t>(i)];
        }
        const double term = static_cast<double>(dot) * m.scale(r, g) *
                            static_cast<double>(x.scales[static_cast<size_t>(g)]);
        sum += term;
        magnitude += std::fabs(term);
      }
      out.value.push_back(sum);
      out.tolerance.push_back(magnitude * static_cast<double>(m.n_groups + 9) * kRounding);
    }
  }
  return out;
}

Outputs multiply(const Matrix& m, const float* x, int64_t n) {
  Outputs out;
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t r = 0; r < m.rows; ++r) {
      double sum = 0.0, magnitude = 0.0;
      for (int64_t i = 0; i < m.cols; ++i) {
        const double term =
            m.dense[static_cast<size_t>(r * m.cols + i)] * static_cast<double>(x[t * m.cols + i]);
        sum += term;
        magnitude += std::fabs(term);
      }
      out.value.push_back(sum);
      out.tolerance.push_back(magnitude * static_cast<double>(m.cols + 9) * kRounding);
    }
  }
  return out;
}

// |d silu / dx| < 1.1, |silu(x)| <= |x|; exp, the sum, the division and the product add a few
// roundings.
Outputs swiglu(const Outputs& both, int64_t n, int64_t hidden) {
  constexpr int64_t kBand = llama2q::kBandRows;
  const int64_t stride = static_cast<int64_t>(both.value.size()) / n;
  Outputs out;
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t i = 0; i < hidden; ++i) {
      const auto gate = static_cast<size_t>(t * stride + i / kBand * 2 * kBand + i % kBand);
      const size_t up = gate + static_cast<size_t>(kBand);
      const double g = both.value[gate], u = both.value[up];
      const double silu = g / (1.0 + std::exp(std::clamp(-g, -87.0, 87.0)));
      out.value.push_back(silu * u);
      out.tolerance.push_back(1.1 * both.tolerance[gate] * (std::fabs(u) + both.tolerance[up]) +
                              std::fabs(silu) * both.tolerance[up] +
                              std::fabs(silu * u) * 8 * kRounding + std::fabs(u) * 1e-35);
    }
  }
  return out;
}

void expect_close(const std::vector<float>& got, const Outputs& wanted, const std::string& what) {
  expect(got.size() == wanted.value.size(), what + ": sizes differ");
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - wanted.value[i]);
    if (!(error <= wanted.tolerance[i] * 1.01 + 1e-37)) {
      throw Failure(what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) +
                    ", wanted " + std::to_string(wanted.value[i]) + " within " +
                    std::to_string(wanted.tolerance[i]));
    }
  }
}

void expect_same(const float* got, const float* wanted, int64_t n, const std::string& what) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::memcmp(got + i, wanted + i, sizeof(float)) != 0) {
      throw Failure(what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) +
                    ", wanted " + std::to_string(wanted[i]) + ", bit for bit");
    }
  }
}

llama2q::DeviceLimits limits_of(int64_t n_multiprocessors) {
  int bytes = 0;
  llama2q::cuda::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
                       "asking for shared memory");
  return {n_multiprocessors, std::min(bytes, 99 * 1024)};
}

std::vector<std::vector<float>> run_call(Call& call, const Device& device) {
  using llama2q::cuda::MatmulCall;
  const llama2q::MatrixView& first = call.matrices[0]->view();
  int64_t group_size = 0;
  for (const PlacedMatrix* matrix : call.matrices) {
    group_size = std::max(group_size, matrix->view().group_size);
  }
  const Buffer<float> x(call.x);
  const Buffer<float> norm(call.norm.empty() ? std::vector<float>(1) : call.norm);
  const Buffer<uint8_t> work(static_cast<size_t>(
      llama2q::cuda::matmul_work_bytes(device.limits, call.n, first.cols, group_size)));
  const Buffer<uint32_t> tickets(std::vector<uint32_t>(
      static_cast<size_t>(llama2q::cuda::matmul_tickets(device.limits, device.n_kv_heads))));
  const Buffer<int32_t> fault(std::vector<int32_t>{0});
  MatmulCall args{};
  args.n_matrices = static_cast<int32_t>(call.matrices.size());
  std::vector<Buffer<float>*> y;
  for (size_t m = 0; m < call.matrices.size(); ++m) {
    args.matrices[m] = &call.matrices[m]->view();
    const int64_t rows = call.hidden != 0 ? call.hidden : args.matrices[m]->rows;
    const std::vector<float> before(static_cast<size_t>(call.n * rows), std::nanf(""));
    y.push_back(new Buffer<float>(call.y.empty() ? before : call.y));
    args.y[m] = y[m]->data();
  }
  args.x = x.data();
  args.n_tokens = call.n;
  args.norm = call.norm.empty() ? nullptr : norm.data();
  args.eps = kEps;
  args.epilogue = call.epilogue;
  args.y_rows = call.hidden;
  args.work = work.data();
  args.tickets = tickets.data();
  args.fault = {fault.data(), kFaultCode};
  llama2q::cuda::matmul(test_stream(), device.limits, args);
  llama2q::cuda::check(cudaDeviceSynchronize(), "matmul");
  std::vector<std::vector<float>> out;
  for (Buffer<float>* const buffer : y) {
    out.push_back(buffer->read());
    delete buffer;
  }
  for (const uint32_t ticket : tickets.read()) expect(ticket == 0, "a ticket is left over");
  call.fault = fault.read()[0];
  return out;
}

}  // namespace checks
