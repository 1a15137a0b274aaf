#include "bindings/config.h"

#include "base/check.h"
#include "base/float_env.h"

namespace llama2q {
namespace {

namespace py = pybind11;

// A number of the config; anything else is an error that names it.
template <class T>
T number(const py::object& value, const char* key) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw InvalidArgument(std::string("config: \"") + key + "\" is a " +
                          Py_TYPE(value.ptr())->tp_name + " or out of range; expected a number");
  }
}

}  // namespace

Config config_of(const py::dict& values) {
  const FloatEnv environment;  // norm_eps is rounded to float here
  const auto get = [&](const char* key) {
    require(values.contains(key), std::string("config lacks \"") + key + "\"");
    return py::object(values[key]);
  };
  const auto size = [&](const char* key) { return number<int64_t>(get(key), key); };
  return {.dim = size("dim"),
          .hidden_dim = size("hidden_dim"),
          .n_layers = size("n_layers"),
          .n_heads = size("n_heads"),
          .n_kv_heads = size("n_kv_heads"),
          .vocab_size = size("vocab_size"),
          .norm_eps = number<float>(get("norm_eps"), "norm_eps")};
}

}  // namespace llama2q
