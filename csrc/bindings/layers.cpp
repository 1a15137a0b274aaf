#include "bindings/layers.h"

namespace llama2q {

const float* kept_vector(const py::array& array, const char* name, int64_t size, py::list& kept) {
  check_array(array, name, "float32", {size});
  kept.append(array);
  return data_of<float>(array);
}

LayerView layer_of(const py::handle& values, int64_t index, const Config& config, py::list& kept) {
  require(py::isinstance<py::dict>(values),
          std::string("a layer is a ") + Py_TYPE(values.ptr())->tp_name + "; expected a dict");
  const auto get = [&](const char* key) {
    require(values.contains(key), std::string("a layer lacks \"") + key + "\"");
    return py::object(values[key]);
  };
  const auto refuse = [](const py::object& value, const char* key, const char* expected) {
    throw InvalidArgument(std::string("a layer's \"") + key + "\" is a " +
                          Py_TYPE(value.ptr())->tp_name + "; expected " + expected);
  };
  const auto matrix = [&](const char* key) {
    const py::object held = get(key);
    if (!py::isinstance<PyMatrix>(held)) refuse(held, key, "a Matrix");
    const auto& value = held.cast<const PyMatrix&>();
    kept.append(value.codes);
    kept.append(value.scales);
    return value.view;
  };
  const auto norm = [&](const char* key) {
    const py::object held = get(key);
    if (!py::isinstance<py::array>(held)) refuse(held, key, "an array");
    return kept_vector(py::reinterpret_borrow<py::array>(held), key, config.dim, kept);
  };
  return {.index = index,
          .attention_norm = norm("attention_norm"),
          .wq = matrix("wq"),
          .wk = matrix("wk"),
          .wv = matrix("wv"),
          .wo = matrix("wo"),
          .ffn_norm = norm("ffn_norm"),
          .w1_w3 = matrix("w1_w3"),
          .w2 = matrix("w2")};
}

}  // namespace llama2q
