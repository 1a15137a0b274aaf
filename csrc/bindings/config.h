// The model's config, handed in from Python as a dict.
#pragma once

#include <pybind11/pybind11.h>

#include "model/config.h"

namespace llama2q {

// Throws InvalidArgument naming what is missing or no number.
Config config_of(const pybind11::dict& values);

}  // namespace llama2q
