// Checks on NumPy arrays at the border: dtype, shape and contiguity are errors, never converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <string_view>

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

// `dtype` is a kind and a number of bits: "float32", "uint8". Another byte order is another dtype.
// Kind, size and order are read off: NumPy takes microseconds to look a name up.
inline bool has_dtype(const py::array& array, std::string_view dtype) {
  const py::dtype found = array.dtype();
  const size_t digits = dtype.find_first_of("123456789");
  int64_t bits = 0;
  for (const char digit : dtype.substr(digits)) bits = 10 * bits + (digit - '0');
  return found.kind() == dtype[0] && 8 * found.itemsize() == bits &&
         (found.byteorder() == '=' || found.byteorder() == '|');
}

inline bool has_shape(const py::array& array, std::initializer_list<int64_t> shape) {
  bool matches = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t i = 0;
  for (const int64_t size : shape) {
    matches = matches && (size == kAny || array.shape(i) == size);
    ++i;
  }
  return matches;
}

inline bool is_contiguous(const py::array& array) {
  return (array.flags() & py::array::c_style) != 0;
}

// Throws what check_array finds wrong.
[[noreturn]] inline void refuse_array(const py::array& array, const std::string& name,
                                      const char* dtype, std::initializer_list<int64_t> shape) {
  require(
      has_dtype(array, dtype),
      name + " has dtype " + py::str(array.dtype()).cast<std::string>() + "; expected " + dtype);
  std::string expected;
  for (const int64_t size : shape) {
    expected +=
        (expected.empty() ? "" : ", ") + (size == kAny ? std::string("*") : std::to_string(size));
  }
  require(has_shape(array, shape), name + " has shape " + shape_text(array) + "; expected (" +
                                       expected + (shape.size() == 1 ? ",)" : ")"));
  throw InvalidArgument(name + " is not C-contiguous; pass numpy.ascontiguousarray(...)");
}

// Throws unless `array` is C-contiguous, has that dtype and that shape (kAny: any size).
inline void check_array(const py::array& array, const char* name, const char* dtype,
                        std::initializer_list<int64_t> shape) {
  if (!has_dtype(array, dtype) || !has_shape(array, shape) || !is_contiguous(array)) {
    refuse_array(array, name, dtype, shape);
  }
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
