// Stands in for the CUDA runtime's header: the same names, for a host compiler. Device memory is
// host memory, streams do everything at once, a kernel's threads are fibers
// (emulation/execution.h).
#pragma once

#include "emulation/device_functions.h"
#include "emulation/qualifiers.h"
#include "emulation/runtime_api.h"
#include "emulation/variables.h"
#include "emulation/vector_types.h"
