// Checks on NumPy arrays at the border: dtype, shape and contiguity are errors, never converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "base/check.h"

namespace llama2q {

namespace py = pybind11;

inline constexpr int64_t kAny = -1;

inline std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + (array.ndim() == 1 ? ",)" : ")");
}

inline bool has_dtype(const py::array& array, const char* dtype) {
  return array.dtype().equal(py::dtype(dtype));
}

// Throws unless `array` is C-contiguous, has that dtype and that shape (kAny: any size).
inline void check_array(const py::array& array, const char* name, const char* dtype,
                        std::initializer_list<int64_t> shape) {
  require(has_dtype(array, dtype), std::string(name) + " has dtype " +
                                       py::str(array.dtype()).cast<std::string>() + "; expected " +
                                       dtype);
  bool matches = array.ndim() == static_cast<py::ssize_t>(shape.size());
  std::string expected;
  py::ssize_t i = 0;
  for (const int64_t size : shape) {
    if (matches && size != kAny && array.shape(i) != size) matches = false;
    expected += (i > 0 ? ", " : "") + (size == kAny ? std::string("*") : std::to_string(size));
    ++i;
  }
  require(matches, std::string(name) + " has shape " + shape_text(array) + "; expected (" +
                       expected + (shape.size() == 1 ? ",)" : ")"));
  require((array.flags() & py::array::c_style) != 0,
          std::string(name) + " is not C-contiguous; pass numpy.ascontiguousarray(...)");
}

// NumPy can view memory from any byte on; reading elements that straddle their size is undefined.
inline const void* aligned_data(const py::array& array) {
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    throw InvalidArgument("an array of shape " + shape_text(array) +
                          " is not aligned to the size of its elements; pass a copy of it");
  }
  return array.data();
}

template <class T>
const T* data_of(const py::array& array) {
  return static_cast<const T*>(aligned_data(array));
}

inline py::array_t<float> new_floats(std::initializer_list<py::ssize_t> shape) {
  return py::array_t<float>(py::array::ShapeContainer(shape));
}

}  // namespace llama2q
