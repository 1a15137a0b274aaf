#include "matrices.h"

#include <algorithm>
#include <cmath>

#include "base/types.h"
#include "quant/dense.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace checks {

namespace {

using llama2q::kBandRows;
using llama2q::MatrixKind;

constexpr int kNonuniform[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};

MatrixKind matrix_kind(Kind kind) {
  switch (kind) {
    case Kind::kInt8:
      return MatrixKind::kInt8;
    case Kind::kF32:
      return MatrixKind::kF32;
    case Kind::kF16:
      return MatrixKind::kF16;
    case Kind::kBf16:
      return MatrixKind::kBf16;
    default:
      return MatrixKind::kInt4;
  }
}

int grid_value(Kind kind, int code) { return kind == Kind::kLookup ? kNonuniform[code] : code - 8; }

bool is_dense(Kind kind) {
  return std::find(std::begin(kDense), std::end(kDense), kind) != std::end(kDense);
}

uint16_t bf16_of(float x) { return static_cast<uint16_t>(llama2q::float_bits(x) >> 16); }

// Rounded (f16) or cut off (bf16) to what the dense type holds. Out of line: GCC 12 drops the cut
// if it stands under an `if`.
[[gnu::noinline]] float cut_to_bf16(float x) { return llama2q::bf16_to_f32(bf16_of(x)); }

float as_stored(Kind kind, float x) {
  if (kind == Kind::kF16) return llama2q::f16_to_f32(llama2q::f32_to_f16(x));
  return kind == Kind::kBf16 ? cut_to_bf16(x) : x;
}

}  // namespace

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"lookup", "uniform", "int8", "f32", "f16", "bf16"};
  return kNames[static_cast<int>(kind)];
}

int Matrix::value(int64_t row, int64_t col) const {
  const uint8_t code = codes[static_cast<size_t>(row * padded_cols() + col)];
  return kind == Kind::kInt8 ? static_cast<int8_t>(code) : grid_value(kind, code);
}

double Matrix::scale(int64_t row, int64_t group) const {
  return static_cast<double>(
      llama2q::f16_to_f32(scales[static_cast<size_t>(row * n_groups + group)]));
}

llama2q::MatrixView Matrix::view() const {
  llama2q::MatrixView view{};
  view.kind = matrix_kind(kind);
  view.rows = rows;
  view.cols = cols;
  view.n_bands = n_bands();
  view.group_size = group_size;
  view.n_groups = n_groups;
  for (int code = 0; code < 16; ++code) {
    view.grid[code] = static_cast<int8_t>(grid_value(kind, code));
  }
  return view;
}

std::vector<uint8_t> Matrix::file_codes() const {
  const auto bytes = static_cast<size_t>(llama2q::cuda::file_band_code_bytes(view()));
  std::vector<uint8_t> out(static_cast<size_t>(n_bands()) * bytes);
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* const band = out.data() + static_cast<size_t>(row / kBandRows) * bytes;
    const int64_t r = row % kBandRows;
    if (!quantized()) {
      for (int64_t col = 0; col < cols; ++col) {
        const auto x = static_cast<float>(dense[static_cast<size_t>(row * cols + col)]);
        const int64_t at = llama2q::DensePlace::at(r, col);
        if (kind == Kind::kF32) {
          std::memcpy(band + at * 4, &x, 4);
        } else {
          const uint16_t half = kind == Kind::kF16 ? llama2q::f32_to_f16(x) : bf16_of(x);
          std::memcpy(band + at * 2, &half, 2);
        }
      }
      continue;
    }
    const uint8_t* const of_row = codes.data() + row * padded_cols();
    const int64_t line_columns =
        kind == Kind::kInt8 ? llama2q::kInt8LineColumns : llama2q::kInt4LineColumns;
    for (int64_t line = 0; line < padded_cols() / line_columns; ++line) {
      uint8_t* const to = band + line * llama2q::kLineBytes;
      if (kind == Kind::kInt8) {
        llama2q::Int8Place::put_row(reinterpret_cast<int8_t*>(to), r,
                                    reinterpret_cast<const int8_t*>(of_row + line * line_columns));
      } else {
        llama2q::Int4Place::put_row(to, r, of_row + line * line_columns);
      }
    }
  }
  return out;
}

std::vector<uint16_t> Matrix::file_scales() const {
  std::vector<uint16_t> out(static_cast<size_t>(n_bands() * n_groups * kBandRows));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < n_groups; ++g) {
      out[static_cast<size_t>((row / kBandRows * n_groups + g) * kBandRows + row % kBandRows)] =
          scales[static_cast<size_t>(row * n_groups + g)];
    }
  }
  return out;
}

Matrix random_matrix(Kind kind, int64_t rows, int64_t cols, int64_t group_size) {
  Matrix m;
  m.kind = kind;
  m.rows = rows;
  m.cols = cols;
  if (is_dense(kind)) {
    m.dense.resize(static_cast<size_t>(rows * cols));
    for (double& x : m.dense) {
      x = static_cast<double>(
          as_stored(kind, std::normal_distribution<float>(0.0f, 0.05f)(generator())));
    }
    return m;
  }
  m.group_size = group_size;
  m.n_groups = (cols + group_size - 1) / group_size;
  m.codes.resize(static_cast<size_t>(rows * m.padded_cols()));
  m.scales.resize(static_cast<size_t>(rows * m.n_groups));
  for (int64_t i = 0; i < rows * m.padded_cols(); ++i) {
    const int code = kind == Kind::kInt8 ? random_int(-127, 127) : random_int(0, 15);
    const bool absent = i % m.padded_cols() >= cols;  // the format has zeros there
    m.codes[static_cast<size_t>(i)] = static_cast<uint8_t>(absent ? 0 : code);
  }
  for (uint16_t& scale : m.scales) {  // of both signs, some subnormal
    const float x = std::normal_distribution<float>(0.0f, 0.01f)(generator());
    scale = llama2q::f32_to_f16(random_int(0, 15) == 0 ? x * 0x1p-10f : x);
  }
  return m;
}

Matrix integer_matrix(Kind kind, int64_t rows, int64_t cols, int64_t group_size) {
  Matrix m = random_matrix(kind, rows, cols, group_size);
  std::fill(m.scales.begin(), m.scales.end(), llama2q::f32_to_f16(1.0f));
  return m;
}

Matrix interleaved(const Matrix& gate, const Matrix& up) {
  Matrix m = gate;
  m.rows = 2 * kBandRows * gate.n_bands();
  m.codes.assign(static_cast<size_t>(m.rows * m.padded_cols()), 0);
  m.scales.assign(static_cast<size_t>(m.rows * m.n_groups), 0);
  m.dense.assign(gate.quantized() ? 0 : static_cast<size_t>(m.rows * m.cols), 0.0);
  const auto put = [&](const Matrix& from, int64_t odd) {
    const auto copy = [&](const auto& source, auto& to, int64_t n) {
      for (int64_t row = 0; row < from.rows && n > 0; ++row) {
        const int64_t place = (2 * (row / kBandRows) + odd) * kBandRows + row % kBandRows;
        std::copy_n(source.begin() + row * n, n, to.begin() + place * n);
      }
    };
    copy(from.codes, m.codes, m.padded_cols());
    copy(from.scales, m.scales, m.n_groups);
    copy(from.dense, m.dense, gate.quantized() ? 0 : m.cols);
  };
  put(gate, 0);
  put(up, 1);
  return m;
}

PlacedMatrix::PlacedMatrix(const Matrix& matrix)
    : memory_(static_cast<size_t>(llama2q::cuda::matrix_bytes(matrix.view()))),
      view_(llama2q::cuda::placed_matrix(matrix.view(), memory_.data())) {
  const Buffer<uint8_t> codes(matrix.file_codes());
  std::vector<uint16_t> file_scales = matrix.file_scales();
  file_scales.resize(std::max<size_t>(file_scales.size(), 1));
  const Buffer<uint16_t> scales(file_scales);
  const int64_t first = matrix.n_bands() / 2;
  const auto place = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    llama2q::cuda::place_bands(
        test_stream(), view_, begin, end - begin,
        codes.data() + begin * llama2q::cuda::file_band_code_bytes(view_),
        scales.data() + begin * llama2q::cuda::file_band_scale_bytes(view_) / 2);
  };
  place(0, first);
  place(first, matrix.n_bands());
  llama2q::cuda::check(cudaDeviceSynchronize(), "placing a matrix");
}

llama2q::cuda::Stream test_stream() {
  int major = 0;
  llama2q::cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                       "the compute capability");
  return {nullptr, major >= 9};
}

}  // namespace checks
