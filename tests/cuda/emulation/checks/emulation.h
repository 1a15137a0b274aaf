// The checks of the emulation itself, by subject.
#pragma once

#include <string>

#include "cuda/launch.h"
#include "harness.h"

namespace checks {

// emulation_threads.cu
void check_ended_lane();
void check_lanes_at_different_operations();
void check_lanes_at_different_lines();
void check_warps_at_different_barriers();
void check_partial_warp();
void check_early_exit();
void check_built_in_variables();
void check_order_matters();
void check_order_of_sound_kernels();
void check_matrix_rows();

// emulation_memory.cu
void check_shared_is_nan();
void check_missing_wait();
void check_copy_addresses();
void check_streamed_address();
void check_memory_limit();
void check_memory_is_nan();
void check_copy_directions();
void check_pinning();

// emulation_runtime.cu
void check_launch_limits();
void check_shared_limits();
void check_programmatic_launches();
void check_overlap();
void check_graphs();
void check_forbidden_in_capture();
void check_devices();
void check_errors_stay();
void check_names();
void check_events();

// Runs f, which must throw, and returns what it says.
template <typename F>
std::string error_of(F f) {
  try {
    f();
  } catch (const llama2q::cuda::CudaError& error) {
    return error.what();
  }
  throw Failure("no error");
}

}  // namespace checks
