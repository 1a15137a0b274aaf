// One function per bindings file.
#pragma once

#include <pybind11/pybind11.h>

namespace llama2q {

void bind_model(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_int4(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_sample(pybind11::module_& m);
void bind_limits(pybind11::module_& m);
void bind_devices(pybind11::module_& m);
void bind_calibrate(pybind11::module_& m);

}  // namespace llama2q
