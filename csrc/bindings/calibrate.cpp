// The linear algebra of calibration on NumPy arrays, in place.
#include <pybind11/stl.h>

#include <optional>

#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "bindings/arrays.h"
#include "bindings/bind.h"
#include "bindings/signals.h"
#include "calibrate/ldl.h"
#include "calibrate/product.h"

namespace llama2q {
namespace {

using Isa = std::optional<std::string>;
using Threads = std::optional<int>;

// float32 [rows, cols] that may be written.
float* writeable(py::array& array, const char* name, int64_t rows, int64_t cols) {
  check_array(array, name, "float32", {rows, cols});
  require(array.writeable(), std::string(name) + " is read-only; it is changed in place");
  aligned_data(array);
  return static_cast<float*>(array.mutable_data());
}

const float* readable(const py::array& array, const char* name, const py::array& written,
                      const char* written_name) {
  check_array(array, name, "float32", {kAny, kAny});
  const auto begin = [](const py::array& a) { return reinterpret_cast<uintptr_t>(a.data()); };
  const auto end = [&](const py::array& a) { return begin(a) + static_cast<size_t>(a.nbytes()); };
  require(end(array) <= begin(written) || end(written) <= begin(array),
          std::string(name) + " overlaps " + written_name +
              ", which is changed in place; pass a copy of it");
  return data_of<float>(array);
}

void add(const GemmArgs& product, const Isa& isa, Threads n_threads) {
  const KernelTable& table = kernels_named(isa.value_or(""));
  const py::gil_scoped_release release;
  const FloatEnv environment;
  ThreadPool pool(n_threads.value_or(default_thread_count()));
  Products(table, pool).add(product);
}

void add_product(py::array& c, const py::array& a, const py::array& b, bool subtract,
                 const Isa& isa, Threads n_threads) {
  float* data = writeable(c, "c", kAny, kAny);
  const float *left = readable(a, "a", c, "c"), *right = readable(b, "b", c, "c");
  check_array(a, "a", "float32", {kAny, c.shape(0)});
  check_array(b, "b", "float32", {a.shape(0), c.shape(1)});
  add({.a = left,
       .b = right,
       .c = data,
       .m = c.shape(0),
       .n = c.shape(1),
       .depth = a.shape(0),
       .a_stride = c.shape(0),
       .b_stride = c.shape(1),
       .c_stride = c.shape(1),
       .subtract = subtract,
       .lower = false},
      isa, n_threads);
}

void add_gram(py::array& h, const py::array& x, const Isa& isa, Threads n_threads) {
  check_array(h, "h", "float32", {kAny, kAny});
  const int64_t n = h.shape(0);
  float* data = writeable(h, "h", n, n);
  const float* rows = readable(x, "x", h, "h");
  check_array(x, "x", "float32", {kAny, n});
  add({.a = rows,
       .b = rows,
       .c = data,
       .m = n,
       .n = n,
       .depth = x.shape(0),
       .a_stride = n,
       .b_stride = n,
       .c_stride = n,
       .subtract = false,
       .lower = true},
      isa, n_threads);
}

int64_t factor(py::array& h, const Isa& isa, Threads n_threads) {
  check_array(h, "h", "float32", {kAny, kAny});
  const int64_t n = h.shape(0);
  float* data = writeable(h, "h", n, n);
  const KernelTable& table = kernels_named(isa.value_or(""));
  const py::gil_scoped_release release;
  const FloatEnv environment;
  ThreadPool pool(n_threads.value_or(default_thread_count()));
  return ldl(table, pool, data, n, SignalCheck());
}

void mirror(py::array& h, Threads n_threads) {
  check_array(h, "h", "float32", {kAny, kAny});
  const int64_t n = h.shape(0);
  float* data = writeable(h, "h", n, n);
  const py::gil_scoped_release release;
  ThreadPool pool(n_threads.value_or(default_thread_count()));
  mirror_lower(pool, data, n);
}

}  // namespace

void bind_calibrate(py::module_& m) {
  using py::arg;
  const auto isa = [] { return arg("isa") = py::none(); };
  const auto n_threads = [] { return arg("n_threads") = py::none(); };
  m.def("add_product", add_product, arg("c").noconvert(), arg("a").noconvert(),
        arg("b").noconvert(), arg("subtract") = false, isa(), n_threads(),
        "c += a.T @ b (or -=) in place: c float32 (m, n), a (k, m), b (k, n).");
  m.def("add_gram", add_gram, arg("h").noconvert(), arg("x").noconvert(), isa(), n_threads(),
        "h += x.T @ x in place, the lower triangle alone: h float32 (k, k), x (n, k).");
  m.def("ldl", factor, arg("h").noconvert(), isa(), n_threads(),
        "h = L D L^T in place, of h float32 (n, n) the lower triangle alone: L (without its ones) "
        "below the diagonal, D on it. Returns -1, or the index of the first pivot that is not "
        "greater than 0 or not finite.");
  m.def("mirror_lower", mirror, arg("h").noconvert(), n_threads(),
        "Copy what is below the diagonal of h float32 (n, n) above it, in place.");
}

}  // namespace llama2q
