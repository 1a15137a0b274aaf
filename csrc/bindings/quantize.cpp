// Round-to-nearest quantizers on all cores.
#include "quant/quantize.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "backend/cpu_features.h"
#include "backend/thread_pool.h"
#include "base/float_env.h"
#include "base/types.h"
#include "bindings/bind.h"
#include "bindings/weights.h"

namespace llama2q {
namespace {

using Threads = std::optional<int>;
using std::to_string;

WeightSource source_of(const py::array& weights) {
  const MatrixKind kind = dense_kind_of(weights, "weights");
  check_array(weights, "weights", py::str(weights.dtype()).cast<std::string>().c_str(),
              {kAny, kAny});
  require(weights.shape(0) > 0 && weights.shape(1) > 0,
          "weights have shape " + shape_text(weights) + "; expected at least one row and column");
  const SourceType type = kind == MatrixKind::kF32   ? SourceType::kF32
                          : kind == MatrixKind::kF16 ? SourceType::kF16
                                                     : SourceType::kBf16;
  return {type, aligned_data(weights), weights.shape(0), weights.shape(1)};
}

void check_group_size(int64_t group_size) {
  require(group_size == 32 || group_size == 64 || group_size == 128,
          "group_size is " + to_string(group_size) + "; expected 32, 64 or 128");
}

float value_at(const WeightSource& source, int64_t index) {
  switch (source.type) {
    case SourceType::kF32:
      return static_cast<const float*>(source.data)[index];
    case SourceType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(source.data)[index]);
    case SourceType::kBf16:
      return bf16_to_f32(static_cast<const uint16_t*>(source.data)[index]);
  }
  return 0.0f;
}

std::string place_of(const WeightSource& source, int64_t index) {
  return "row " + to_string(index / source.cols) + ", column " + to_string(index % source.cols);
}

// Runs one(begin, end) -> QuantizeFault over [0, n) on all threads; raises the first fault.
template <class One>
void run(const WeightSource& source, int64_t n, Threads n_threads, One one) {
  std::mutex mutex;
  QuantizeFault first;
  const auto earlier = [](int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); };
  {
    const py::gil_scoped_release release;
    ThreadPool pool(n_threads.value_or(default_thread_count()));
    const FloatEnv environment;
    const int64_t grain = std::clamp<int64_t>(n / (int64_t{8} * pool.n_threads()), 1, 16);
    pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int) {
      const QuantizeFault fault = one(begin, end);
      if (fault.none()) return;
      const std::lock_guard<std::mutex> lock(mutex);
      first = {earlier(first.non_finite, fault.non_finite),
               earlier(first.overflow, fault.overflow)};
    });
  }
  if (first.non_finite >= 0) {
    throw NonFiniteWeight(place_of(source, first.non_finite) + " is " +
                          to_string(value_at(source, first.non_finite)) +
                          "; expected finite weights");
  }
  if (first.overflow >= 0) {
    throw Unrepresentable("the group at " + place_of(source, first.overflow) +
                          " has weights whose scale is beyond 65504, the largest float16");
  }
}

template <class T>
py::array_t<T> zeros(std::initializer_list<py::ssize_t> shape) {
  py::array_t<T> array{py::array::ShapeContainer(shape)};
  std::memset(array.mutable_data(), 0, static_cast<size_t>(array.nbytes()));
  return array;
}

py::array zero_scales(std::initializer_list<py::ssize_t> shape) {
  py::array scales(py::dtype("float16"), py::array::ShapeContainer(shape));
  std::memset(scales.mutable_data(), 0, static_cast<size_t>(scales.nbytes()));
  return scales;
}

struct Shape {
  int64_t n_bands;
  int64_t n_groups;
};

Shape shape_of(const WeightSource& source, int64_t group_size) {
  return {(source.rows + kBandRows - 1) / kBandRows, (source.cols + group_size - 1) / group_size};
}

py::tuple int4(const py::array& weights, int64_t group_size, const py::array& grid,
               Threads n_threads) {
  const WeightSource source = source_of(weights);
  check_group_size(group_size);
  check_array(grid, "grid", "int8", {16});
  const auto* values = data_of<int8_t>(grid);
  require(values[0] < 0 && -values[0] >= values[15] && std::is_sorted(values, values + 16),
          "grid must ascend, with its largest magnitude first");
  const auto [n_bands, n_groups] = shape_of(source, group_size);
  auto codes = zeros<uint8_t>({n_bands, n_groups * group_size / kInt4LineColumns, kLineBytes});
  py::array scales = zero_scales({n_bands, n_groups, kBandRows});
  uint8_t* code_data = codes.mutable_data();
  auto* scale_data = static_cast<uint16_t*>(scales.mutable_data());
  run(source, n_bands, n_threads, [&](int64_t begin, int64_t end) {
    return quantize_int4(source, group_size, values, begin, end, code_data, scale_data);
  });
  return py::make_tuple(codes, scales);
}

py::tuple int8(const py::array& weights, int64_t group_size, Threads n_threads) {
  const WeightSource source = source_of(weights);
  check_group_size(group_size);
  const auto [n_bands, n_groups] = shape_of(source, group_size);
  auto codes = zeros<int8_t>({n_bands, n_groups * group_size / kInt8LineColumns, kLineBytes});
  py::array scales = zero_scales({n_bands, n_groups, kBandRows});
  int8_t* code_data = codes.mutable_data();
  auto* scale_data = static_cast<uint16_t*>(scales.mutable_data());
  run(source, n_bands, n_threads, [&](int64_t begin, int64_t end) {
    return quantize_int8(source, group_size, begin, end, code_data, scale_data);
  });
  return py::make_tuple(codes, scales);
}

py::tuple rows_int8(const py::array& weights, int64_t group_size, Threads n_threads) {
  const WeightSource source = source_of(weights);
  check_group_size(group_size);
  auto codes = zeros<int8_t>({source.rows, source.cols});
  py::array scales = zero_scales({source.rows, shape_of(source, group_size).n_groups});
  int8_t* code_data = codes.mutable_data();
  auto* scale_data = static_cast<uint16_t*>(scales.mutable_data());
  run(source, source.rows, n_threads, [&](int64_t begin, int64_t end) {
    return quantize_rows_int8(source, group_size, begin, end, code_data, scale_data);
  });
  return py::make_tuple(codes, scales);
}

py::array dense(const py::array& weights, Threads n_threads) {
  const WeightSource source = source_of(weights);
  const int64_t n_bands = (source.rows + kBandRows - 1) / kBandRows;
  py::array values(weights.dtype(), py::array::ShapeContainer({n_bands, source.cols, kBandRows}));
  std::memset(values.mutable_data(), 0, static_cast<size_t>(values.nbytes()));
  void* data = values.mutable_data();
  run(source, n_bands, n_threads,
      [&](int64_t begin, int64_t end) { return pack_dense(source, begin, end, data); });
  return values;
}

}  // namespace

void bind_quantize(py::module_& m) {
  using py::arg;
  const auto weights = [] { return arg("weights").noconvert(); };
  const auto n_threads = [] { return arg("n_threads") = py::none(); };
  m.def("quantize_int4", int4, weights(), arg("group_size"), arg("grid").noconvert(), n_threads(),
        "weights float32, float16 or uint16 (bfloat16) (rows, cols) -> codes uint8 "
        "(n_bands, K/8, 64), scales float16 (n_bands, K/G, 16).");
  m.def("quantize_int8", int8, weights(), arg("group_size"), n_threads(),
        "As quantize_int4, codes int8 (n_bands, K/4, 64).");
  m.def("quantize_rows_int8", rows_int8, weights(), arg("group_size"), n_threads(),
        "Row-major: codes int8 (rows, cols), scales float16 (rows, ceil(cols / group_size)).");
  m.def("pack_dense", dense, weights(), n_threads(),
        "(rows, cols) -> (n_bands, cols, 16), same dtype.");
}

}  // namespace llama2q
