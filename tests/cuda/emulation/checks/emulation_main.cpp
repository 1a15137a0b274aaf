#include "emulation.h"
#include "emulation/control.h"
#include "harness.h"

namespace {

// Each check on a machine as it was.
template <void (*kCheck)()>
void fresh() {
  const cuda_emulation::Machine machine = cuda_emulation::machine();
  const uint64_t seed = cuda_emulation::seed();
  cuda_emulation::reset();
  const auto restore = [&] {
    cuda_emulation::reset();
    cuda_emulation::machine() = machine;
    cuda_emulation::seed() = seed;
  };
  try {
    kCheck();
  } catch (...) {
    restore();
    throw;
  }
  restore();
}

}  // namespace

int main(int n_arguments, char** arguments) {
  using namespace checks;
  return run(n_arguments, arguments,
             {
                 {"ended_lane", fresh<check_ended_lane>},
                 {"lanes_at_different_operations", fresh<check_lanes_at_different_operations>},
                 {"lanes_at_different_lines", fresh<check_lanes_at_different_lines>},
                 {"warps_at_different_barriers", fresh<check_warps_at_different_barriers>},
                 {"partial_warp", fresh<check_partial_warp>},
                 {"early_exit", fresh<check_early_exit>},
                 {"built_in_variables", fresh<check_built_in_variables>},
                 {"order_matters", fresh<check_order_matters>},
                 {"order_of_sound_kernels", fresh<check_order_of_sound_kernels>},
                 {"matrix_rows", fresh<check_matrix_rows>},
                 {"shared_is_nan", fresh<check_shared_is_nan>},
                 {"missing_wait", fresh<check_missing_wait>},
                 {"copy_addresses", fresh<check_copy_addresses>},
                 {"streamed_address", fresh<check_streamed_address>},
                 {"memory_limit", fresh<check_memory_limit>},
                 {"memory_is_nan", fresh<check_memory_is_nan>},
                 {"copy_directions", fresh<check_copy_directions>},
                 {"pinning", fresh<check_pinning>},
                 {"launch_limits", fresh<check_launch_limits>},
                 {"shared_limits", fresh<check_shared_limits>},
                 {"programmatic_launches", fresh<check_programmatic_launches>},
                 {"overlap", fresh<check_overlap>},
                 {"graphs", fresh<check_graphs>},
                 {"forbidden_in_capture", fresh<check_forbidden_in_capture>},
                 {"devices", fresh<check_devices>},
                 {"errors_stay", fresh<check_errors_stay>},
                 {"names", fresh<check_names>},
                 {"events", fresh<check_events>},
             });
}
