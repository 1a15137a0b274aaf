// Round-to-nearest int8 quantizers and dense packing, on all cores.
#include "bindings/bind.h"
#include "bindings/quantizers.h"

namespace llama2q {
namespace {

py::tuple int8(const py::array& weights, int64_t group_size, Threads n_threads) {
  const WeightSource source = source_of(weights);
  check_group_size(group_size);
  const auto [n_bands, n_groups] = shape_of(source, group_size);
  auto codes = zeros<int8_t>({n_bands, n_groups * group_size / kInt8LineColumns, kLineBytes});
  py::array scales = zero_scales({n_bands, n_groups, kBandRows});
  int8_t* code_data = codes.mutable_data();
  auto* scale_data = static_cast<uint16_t*>(scales.mutable_data());
  run_quantizer(source, n_bands, n_threads, [&](int64_t begin, int64_t end) {
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
  run_quantizer(source, source.rows, n_threads, [&](int64_t begin, int64_t end) {
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
  run_quantizer(source, n_bands, n_threads,
                [&](int64_t begin, int64_t end) { return pack_dense(source, begin, end, data); });
  return values;
}

}  // namespace

void bind_quantize(py::module_& m) {
  using py::arg;
  const auto weights = [] { return arg("weights").noconvert(); };
  const auto n_threads = [] { return arg("n_threads") = py::none(); };
  m.def("quantize_int8", int8, weights(), arg("group_size"), n_threads(),
        "weights float32, float16 or uint16 (bfloat16) (rows, cols) -> codes int8 (n_bands, K/4, "
        "64), "
        "scales float16 (n_bands, K/G, 16).");
  m.def("quantize_rows_int8", rows_int8, weights(), arg("group_size"), n_threads(),
        "Row-major: codes int8 (rows, cols), scales float16 (rows, ceil(cols / group_size)).");
  m.def("pack_dense", dense, weights(), n_threads(),
        "(rows, cols) -> (n_bands, cols, 16), same dtype.");
}

}  // namespace llama2q
