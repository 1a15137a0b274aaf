// What the bindings of all quantizers share: checked weights, new arrays, faults with their place.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>

#include "backend/cpu_features.h"
#include "backend/thread_pool.h"
#include "base/float_env.h"
#include "base/types.h"
#include "bindings/weights.h"
#include "quant/quantize.h"

namespace llama2q {

using Threads = std::optional<int>;

inline WeightSource source_of(const py::array& weights) {
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

inline void check_group_size(int64_t group_size) {
  require(group_size == 32 || group_size == 64 || group_size == 128,
          "group_size is " + std::to_string(group_size) + "; expected 32, 64 or 128");
}

inline float value_at(const WeightSource& source, int64_t index) {
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

inline std::string place_of(const WeightSource& source, int64_t index) {
  return "row " + std::to_string(index / source.cols) + ", column " +
         std::to_string(index % source.cols);
}

// The first of the faults that several threads report.
class FirstFault {
 public:
  void report(const QuantizeFault& fault) {
    if (fault.none()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    first_ = {earlier(first_.non_finite, fault.non_finite),
              earlier(first_.overflow, fault.overflow)};
  }
  const QuantizeFault& first() const { return first_; }

 private:
  static int64_t earlier(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); }

  std::mutex mutex_;
  QuantizeFault first_;
};

inline void raise_fault(const WeightSource& source, const QuantizeFault& first) {
  if (first.non_finite >= 0) {
    throw NonFiniteWeight(place_of(source, first.non_finite) + " is " +
                          std::to_string(value_at(source, first.non_finite)) +
                          "; expected finite weights");
  }
  if (first.overflow >= 0) {
    throw Unrepresentable("the group at " + place_of(source, first.overflow) +
                          " has weights whose scale is beyond 65504, the largest float16");
  }
}

// Runs one(begin, end) -> QuantizeFault over [0, n) on all threads; raises the first fault.
template <class One>
void run_quantizer(const WeightSource& source, int64_t n, Threads n_threads, One one) {
  FirstFault fault;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(n_threads.value_or(default_thread_count()));
    const FloatEnv environment;
    const int64_t grain = std::clamp<int64_t>(n / (int64_t{8} * pool.n_threads()), 1, 16);
    pool.parallel_for(n, grain,
                      [&](int64_t begin, int64_t end, int) { fault.report(one(begin, end)); });
  }
  raise_fault(source, fault.first());
}

template <class T>
py::array_t<T> zeros(std::initializer_list<py::ssize_t> shape) {
  py::array_t<T> array{py::array::ShapeContainer(shape)};
  std::memset(array.mutable_data(), 0, static_cast<size_t>(array.nbytes()));
  return array;
}

inline py::array zero_scales(std::initializer_list<py::ssize_t> shape) {
  py::array scales(py::dtype("float16"), py::array::ShapeContainer(shape));
  std::memset(scales.mutable_data(), 0, static_cast<size_t>(scales.nbytes()));
  return scales;
}

struct BandShape {
  int64_t n_bands;
  int64_t n_groups;
};

inline BandShape shape_of(const WeightSource& source, int64_t group_size) {
  return {(source.rows + kBandRows - 1) / kBandRows, (source.cols + group_size - 1) / group_size};
}

}  // namespace llama2q
