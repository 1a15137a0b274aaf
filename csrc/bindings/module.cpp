// The extension module llama2q._core: names, errors, and what this machine offers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>

#include "backend/cpu_features.h"
#include "backend/device_library.h"
#include "base/check.h"
#include "bindings/bind.h"
#include "bindings/weights.h"
#include "model/forward.h"

namespace llama2q {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang++ " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "g++ " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

// Raises the class of that name from llama2q.errors.
void raise(const char* name, const std::exception& error) {
  const py::object type = py::module_::import("llama2q.errors").attr(name);
  py::set_error(type, error.what());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const InvalidArgument& error) {
    raise("InvalidArgumentError", error);
  } catch (const NonFinite& error) {
    raise("NonFiniteError", error);
  } catch (const NonFiniteWeight& error) {
    raise("NonFiniteWeightError", error);
  } catch (const Unrepresentable& error) {
    raise("QuantizationError", error);
  } catch (const UnsupportedIsa& error) {
    raise("UnsupportedIsaError", error);
  } catch (const Cancelled& error) {
    raise("CancelledError", error);
  } catch (const DeviceMemoryError& error) {
    raise("InsufficientMemoryError", error);
  } catch (const DeviceError& error) {
    raise("DeviceError", error);
  }
}

}  // namespace
}  // namespace llama2q

PYBIND11_MODULE(_core, m) {
  using namespace llama2q;
  m.doc() = "Kernels and forward pass of llama2q. Arrays are C-contiguous; see _core.pyi.";
  m.attr("__version__") = LLAMA2Q_VERSION;
  m.attr("COMPILER") = kCompiler;
  m.attr("BLOCK_SIZE") = kBlockSize;
  m.attr("BAND_ROWS") = kBandRows;
  m.attr("STEP_TOKENS") = kStepTokens;
  py::register_exception_translator(translate);
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
        return names;
      },
      "Names of the instruction sets compiled in that this CPU has, slowest first.");
  m.def(
      "default_isa", [] { return std::string(default_kernels().name); },
      "Name of the one used when none is asked for: LLAMA2Q_ISA, or the fastest.");
  m.def("compiled_isas", compiled_kernels,
        "Names of the instruction sets that this build holds, slowest first.");
  m.def("cpu_features", cpu_features,
        "What this CPU and operating system offer that kernels can use.");
  m.def("default_threads", default_thread_count,
        "Physical cores that this process may use (affinity and cgroup quota respected).");
  m.def("usable_cpus", usable_cpus,
        "Threads that can run at once: CPUs of the affinity mask, siblings of a core included, at "
        "most the cgroup's quota.");
  bind_weights(m);
  bind_devices(m);
  bind_model(m);
  bind_kernels(m);
  bind_int4(m);
  bind_quantize(m);
  bind_sample(m);
  bind_limits(m);
  bind_calibrate(m);
}
