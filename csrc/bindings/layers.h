// The weights of a layer, handed in from Python as a dict.
#pragma once

#include "bindings/weights.h"
#include "kernels/args.h"
#include "model/config.h"

namespace llama2q {

// A borrowed f32 [size]; the array is appended to `kept`. Throws InvalidArgument.
const float* kept_vector(const py::array& array, const char* name, int64_t size, py::list& kept);

// Layer `index` of the model; its arrays are appended to `kept`. Throws InvalidArgument naming what
// is missing or of another type.
LayerView layer_of(const py::handle& values, int64_t index, const Config& config, py::list& kept);

}  // namespace llama2q
