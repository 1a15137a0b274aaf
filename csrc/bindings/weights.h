// Weight matrices handed in from Python: a view and the arrays that keep it alive.
#pragma once

#include "bindings/arrays.h"
#include "quant/matrix.h"

namespace llama2q {

struct PyMatrix {
  MatrixView view;
  py::array codes;
  py::array scales;
};

struct PyEmbedding {
  EmbeddingView view;
  py::array codes;
  py::array scales;
};

const char* name_of(MatrixKind kind);

// "float32", "float16" or "uint16" (bfloat16) -> the dense kind.
MatrixKind dense_kind_of(const py::array& values, const char* name);

void bind_weights(py::module_& m);

}  // namespace llama2q
