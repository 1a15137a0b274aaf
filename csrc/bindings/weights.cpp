#include "bindings/weights.h"

namespace llama2q {
namespace {

using std::to_string;

int64_t bands_of(int64_t rows) { return (rows + kBandRows - 1) / kBandRows; }

void check_size(const char* name, int64_t size) {
  require(size >= 1 && size < (int64_t{1} << 31),
          std::string(name) + " is " + to_string(size) + "; expected 1 to 2**31 - 1");
}

// Group size from the arrays' shapes: K / n_groups, one of 32, 64, 128 and just enough for cols.
int64_t group_size_of(int64_t padded_cols, int64_t n_groups, int64_t cols) {
  require(n_groups >= 1 && padded_cols % n_groups == 0,
          "scales have " + to_string(n_groups) + " groups for " + to_string(padded_cols) +
              " columns of codes");
  const int64_t group_size = padded_cols / n_groups;
  require(group_size == 32 || group_size == 64 || group_size == 128,
          "codes and scales give group size " + to_string(group_size) + "; expected 32, 64 or 128");
  require(n_groups == (cols + group_size - 1) / group_size,
          "codes hold " + to_string(padded_cols) + " columns; " + to_string(cols) +
              " columns need " + to_string((cols + group_size - 1) / group_size) + " groups of " +
              to_string(group_size));
  return group_size;
}

PyMatrix quantized(MatrixKind kind, const char* dtype, int64_t line_columns, py::array codes,
                   py::array scales, int64_t rows, int64_t cols) {
  check_size("rows", rows);
  check_size("cols", cols);
  const int64_t n_bands = bands_of(rows);
  check_array(codes, "codes", dtype, {n_bands, kAny, kLineBytes});
  check_array(scales, "scales", "float16", {n_bands, kAny, kBandRows});
  const int64_t n_groups = scales.shape(1);
  const int64_t group_size = group_size_of(codes.shape(1) * line_columns, n_groups, cols);
  PyMatrix matrix{.view = {.kind = kind,
                           .rows = rows,
                           .cols = cols,
                           .n_bands = n_bands,
                           .group_size = group_size,
                           .n_groups = n_groups,
                           .codes = codes.data(),
                           .scales = data_of<uint16_t>(scales),
                           .grid = {}},
                  .codes = std::move(codes),
                  .scales = std::move(scales)};
  return matrix;
}

PyMatrix make_int4(py::array codes, py::array scales, const py::array& grid, int64_t rows,
                   int64_t cols) {
  check_array(grid, "grid", "int8", {16});
  PyMatrix matrix = quantized(MatrixKind::kInt4, "uint8", kInt4LineColumns, std::move(codes),
                              std::move(scales), rows, cols);
  for (int i = 0; i < 16; ++i) {
    matrix.view.grid[i] = data_of<int8_t>(grid)[i];
    require(matrix.view.grid[i] != -128, "grid holds -128; values lie in [-127, 127]");
    require(i == 0 || matrix.view.grid[i - 1] < matrix.view.grid[i], "grid is not ascending");
  }
  return matrix;
}

PyMatrix make_int8(py::array codes, py::array scales, int64_t rows, int64_t cols) {
  return quantized(MatrixKind::kInt8, "int8", kInt8LineColumns, std::move(codes), std::move(scales),
                   rows, cols);
}

PyMatrix make_dense(py::array values, int64_t rows, int64_t cols) {
  check_size("rows", rows);
  check_size("cols", cols);
  const MatrixKind kind = dense_kind_of(values, "values");
  check_array(values, "values", py::str(values.dtype()).cast<std::string>().c_str(),
              {bands_of(rows), cols, kBandRows});
  return {.view = {.kind = kind,
                   .rows = rows,
                   .cols = cols,
                   .n_bands = bands_of(rows),
                   .group_size = 0,
                   .n_groups = 0,
                   .codes = aligned_data(values),
                   .scales = nullptr,
                   .grid = {}},
          .codes = std::move(values),
          .scales = {}};
}

PyEmbedding make_embedding_int8(py::array codes, py::array scales) {
  check_array(codes, "codes", "int8", {kAny, kAny});
  check_size("rows of codes", codes.shape(0));
  check_size("columns of codes", codes.shape(1));
  check_array(scales, "scales", "float16", {codes.shape(0), kAny});
  const int64_t cols = codes.shape(1), n_groups = scales.shape(1);
  // The group size is not in the shapes when dim is not a multiple of it: take the one that fits.
  int64_t group_size = 0;
  for (const int64_t candidate : {32, 64, 128}) {
    if ((cols + candidate - 1) / candidate == n_groups) group_size = candidate;
  }
  require(group_size != 0, "scales have " + to_string(n_groups) + " groups for " + to_string(cols) +
                               " columns; no group size of 32, 64, 128 fits");
  return {.view = {.kind = MatrixKind::kInt8,
                   .rows = codes.shape(0),
                   .cols = cols,
                   .group_size = group_size,
                   .n_groups = n_groups,
                   .codes = codes.data(),
                   .scales = data_of<uint16_t>(scales)},
          .codes = std::move(codes),
          .scales = std::move(scales)};
}

PyEmbedding make_embedding_dense(py::array values) {
  const MatrixKind kind = dense_kind_of(values, "values");
  check_array(values, "values", py::str(values.dtype()).cast<std::string>().c_str(), {kAny, kAny});
  check_size("rows of values", values.shape(0));
  check_size("columns of values", values.shape(1));
  return {.view = {.kind = kind,
                   .rows = values.shape(0),
                   .cols = values.shape(1),
                   .group_size = 0,
                   .n_groups = 0,
                   .codes = aligned_data(values),
                   .scales = nullptr},
          .codes = std::move(values),
          .scales = {}};
}

}  // namespace

const char* name_of(MatrixKind kind) {
  switch (kind) {
    case MatrixKind::kInt4:
      return "int4";
    case MatrixKind::kInt8:
      return "int8";
    case MatrixKind::kF32:
      return "f32";
    case MatrixKind::kF16:
      return "f16";
    case MatrixKind::kBf16:
      return "bf16";
  }
  return "";
}

MatrixKind dense_kind_of(const py::array& values, const char* name) {
  if (has_dtype(values, "float32")) return MatrixKind::kF32;
  if (has_dtype(values, "float16")) return MatrixKind::kF16;
  if (has_dtype(values, "uint16")) return MatrixKind::kBf16;
  throw InvalidArgument(std::string(name) + " has dtype " +
                        py::str(values.dtype()).cast<std::string>() +
                        "; expected float32, float16 or uint16 (bfloat16 bits)");
}

void bind_weights(py::module_& m) {
  using py::arg;
  py::class_<PyMatrix>(m, "Matrix",
                       "A weight matrix [rows, cols] in the file's layout; copies nothing.")
      .def_static("int4", make_int4, arg("codes").noconvert(), arg("scales").noconvert(),
                  arg("grid").noconvert(), arg("rows"), arg("cols"),
                  "codes uint8 (n_bands, K/8, 64), scales float16 (n_bands, K/G, 16), grid int8 "
                  "(16,) ascending.")
      .def_static("int8", make_int8, arg("codes").noconvert(), arg("scales").noconvert(),
                  arg("rows"), arg("cols"),
                  "codes int8 (n_bands, K/4, 64), scales float16 (n_bands, K/G, 16).")
      .def_static("dense", make_dense, arg("values").noconvert(), arg("rows"), arg("cols"),
                  "values float32, float16 or uint16 (bfloat16) (n_bands, cols, 16).")
      .def_property_readonly("kind", [](const PyMatrix& self) { return name_of(self.view.kind); })
      .def_property_readonly("rows", [](const PyMatrix& self) { return self.view.rows; })
      .def_property_readonly("cols", [](const PyMatrix& self) { return self.view.cols; })
      .def_property_readonly("group_size",
                             [](const PyMatrix& self) { return self.view.group_size; });
  py::class_<PyEmbedding>(m, "Embedding", "The token embedding table, row-major [vocab_size, dim].")
      .def_static("int8", make_embedding_int8, arg("codes").noconvert(), arg("scales").noconvert(),
                  "codes int8 (vocab_size, dim), scales float16 (vocab_size, ceil(dim / G)).")
      .def_static("dense", make_embedding_dense, arg("values").noconvert(),
                  "values float32, float16 or uint16 (bfloat16) (vocab_size, dim).");
}

}  // namespace llama2q
