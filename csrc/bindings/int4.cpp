// int4 quantizers on all cores: round to nearest, scale search, error feedback.
#include "calibrate/int4.h"

#include <cmath>

#include "base/buffer.h"
#include "bindings/bind.h"
#include "bindings/quantizers.h"
#include "bindings/signals.h"
#include "calibrate/feedback.h"

namespace llama2q {
namespace {

using Isa = std::optional<std::string>;

Int4Matrix matrix_of(const py::array& weights, int64_t group_size, const py::array& grid) {
  const WeightSource source = source_of(weights);
  check_group_size(group_size);
  check_array(grid, "grid", "int8", {16});
  const auto* values = data_of<int8_t>(grid);
  require(values[0] < 0 && -values[0] >= values[15] && std::is_sorted(values, values + 16),
          "grid must ascend, with its largest magnitude first");
  return {source, group_size, values};
}

// New arrays for codes and scales.
struct Int4Arrays {
  py::array_t<uint8_t> codes;
  py::array scales;

  explicit Int4Arrays(const Int4Matrix& matrix) {
    const auto [n_bands, n_groups] = shape_of(matrix.source, matrix.group_size);
    codes = zeros<uint8_t>({n_bands, n_groups * matrix.group_size / kInt4LineColumns, kLineBytes});
    scales = zero_scales({n_bands, n_groups, kBandRows});
  }
  int64_t n_bands() const { return scales.shape(0); }
  Int4Output output() {
    return {codes.mutable_data(), static_cast<uint16_t*>(scales.mutable_data())};
  }
  py::tuple tuple() const { return py::make_tuple(codes, scales); }
};

py::tuple round_to_nearest(const py::array& weights, int64_t group_size, const py::array& grid,
                           Threads n_threads) {
  const Int4Matrix matrix = matrix_of(weights, group_size, grid);
  Int4Arrays arrays(matrix);
  const auto [codes, scales] = arrays.output();
  run_quantizer(matrix.source, arrays.n_bands(), n_threads,
                [&, codes = codes, scales = scales](int64_t begin, int64_t end) {
                  return quantize_int4(matrix.source, group_size, matrix.grid, begin, end, codes,
                                       scales);
                });
  return arrays.tuple();
}

py::tuple search(const py::array& weights, int64_t group_size, const py::array& grid,
                 const std::optional<py::array>& importance, const Isa& isa, Threads n_threads) {
  const Int4Matrix matrix = matrix_of(weights, group_size, grid);
  const float* weighing = nullptr;
  if (importance.has_value()) {
    check_array(*importance, "importance", "float32", {matrix.source.cols});
    weighing = data_of<float>(*importance);
  }
  const KernelTable& table = kernels_named(isa.value_or(""));
  Int4Arrays arrays(matrix);
  const Int4Output output = arrays.output();
  run_quantizer(matrix.source, arrays.n_bands(), n_threads, [&](int64_t begin, int64_t end) {
    return search_int4(table, matrix, weighing, begin, end, output);
  });
  return arrays.tuple();
}

py::tuple feed_back(const py::array& weights, int64_t group_size, const py::array& grid,
                    const py::array& factors, const py::array& importance,
                    const std::optional<py::array>& correction, const Isa& isa, Threads n_threads) {
  const Int4Matrix matrix = matrix_of(weights, group_size, grid);
  const int64_t rows = matrix.source.rows, cols = matrix.source.cols;
  check_array(factors, "factors", "float32", {cols, cols});
  check_array(importance, "importance", "float32", {cols});
  if (correction.has_value()) check_array(*correction, "correction", "float32", {cols, rows});
  const Calibration calibration = {data_of<float>(factors), data_of<float>(importance),
                                   correction.has_value() ? data_of<float>(*correction) : nullptr};
  const KernelTable& table = kernels_named(isa.value_or(""));
  Int4Arrays arrays(matrix);
  const Int4Output output = arrays.output();
  FirstFault fault;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(n_threads.value_or(default_thread_count()));
    const FloatEnv environment;
    Buffer<float> scratch;
    const int64_t per_thread = feedback_scratch(matrix);
    scratch.reserve(checked_multiply(per_thread, pool.n_threads()));
    const int64_t n_panels = (rows + kFeedbackRows - 1) / kFeedbackRows;
    SignalCheck interruption;
    for (int64_t first = 0; first < n_panels; first += pool.n_threads()) {
      const int64_t count = std::min<int64_t>(pool.n_threads(), n_panels - first);
      pool.parallel_for(count, 1, [&](int64_t index, int64_t, int thread) {
        fault.report(feed_back_panel(table, matrix, calibration, first + index, output,
                                     scratch.data() + thread * per_thread));
      });
      interruption();
    }
  }
  const int64_t place = fault.first().non_finite;
  if (place >= 0 && std::isfinite(value_at(matrix.source, place))) {
    throw Unrepresentable("what errors and corrections make of " + place_of(matrix.source, place) +
                          " is not finite");
  }
  raise_fault(matrix.source, fault.first());
  return arrays.tuple();
}

}  // namespace

void bind_int4(py::module_& m) {
  using py::arg;
  const auto weights = [] { return arg("weights").noconvert(); };
  const auto isa = [] { return arg("isa") = py::none(); };
  const auto n_threads = [] { return arg("n_threads") = py::none(); };
  m.def("quantize_int4", round_to_nearest, weights(), arg("group_size"), arg("grid").noconvert(),
        n_threads(),
        "weights float32, float16 or uint16 (bfloat16) (rows, cols) -> codes uint8 "
        "(n_bands, K/8, 64), scales float16 (n_bands, K/G, 16).");
  m.def("search_int4", search, weights(), arg("group_size"), arg("grid").noconvert(),
        arg("importance") = py::none(), isa(), n_threads(),
        "As quantize_int4, the scale of each group chosen by the squared error that it causes, "
        "which importance float32 (cols,) weighs by column.");
  m.def("feed_back_int4", feed_back, weights(), arg("group_size"), arg("grid").noconvert(),
        arg("factors").noconvert(), arg("importance").noconvert(), arg("correction") = py::none(),
        isa(), n_threads(),
        "As search_int4, the error of each column handed on to those not yet rounded. factors "
        "float32 (cols, cols): the inputs' second moments H = L D L^T, with L^T above the "
        "diagonal; importance float32 (cols,): the diagonal of H; correction float32 (cols, "
        "rows): x.T @ d of the inputs x and what the outputs should be beyond x @ weights.T.");
}

}  // namespace llama2q
