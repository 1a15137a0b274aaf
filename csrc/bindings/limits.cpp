// The machine's limits, for benchmarks.
#include "backend/limits.h"

#include <pybind11/stl.h>

#include <optional>

#include "backend/cpu_features.h"
#include "bindings/bind.h"

namespace llama2q {
namespace {

namespace py = pybind11;
using Isa = std::optional<std::string>;
using Threads = std::optional<int>;

py::dict to_dict(const Rates& rates) {
  py::dict found;
  for (const auto& [name, rate] : rates) found[py::str(name)] = rate;
  return found;
}

py::dict dot_rate(const Isa& isa, Threads n_threads, double seconds) {
  const KernelTable& table = kernels_named(isa.value_or(""));
  const Rates rates = [&] {
    const py::gil_scoped_release release;
    return measure_dot_rate(table, n_threads.value_or(default_thread_count()), seconds);
  }();
  return to_dict(rates);
}

py::dict read_bandwidth(const Isa& isa, Threads n_threads, int64_t n_bytes, double seconds) {
  const KernelTable& table = kernels_named(isa.value_or(""));
  const Rates rates = [&] {
    const py::gil_scoped_release release;
    return measure_read_bandwidth(table, n_threads.value_or(default_thread_count()), n_bytes,
                                  seconds);
  }();
  return to_dict(rates);
}

}  // namespace

void bind_limits(py::module_& m) {
  m.def("measure_dot_rate", &dot_rate, py::arg("isa") = py::none(),
        py::arg("n_threads") = py::none(), py::arg("seconds") = 0.4,
        "Int8 operations per second of all threads, by the way they were done.");
  m.def("measure_read_bandwidth", &read_bandwidth, py::arg("isa") = py::none(),
        py::arg("n_threads") = py::none(), py::arg("n_bytes") = int64_t{512} << 20,
        py::arg("seconds") = 2.0,
        "Bytes per second at which all threads read memory, by access pattern.");
}

}  // namespace llama2q
