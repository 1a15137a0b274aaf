#include "checks.h"
#include "harness.h"

int main(int n_arguments, char** arguments) {
  using namespace checks;
  return run(n_arguments, arguments,
             {
                 {"append_shapes", check_append_shapes},
                 {"append_magnitudes", check_append_magnitudes},
                 {"append_ties", check_append_ties},
                 {"append_faults", check_append_faults},
                 {"decode_positions_f32", check_decode_positions_f32},
                 {"decode_positions_f16", check_decode_positions_f16},
                 {"decode_positions_int8", check_decode_positions_int8},
                 {"decode_odd_shapes", check_decode_odd_shapes},
                 {"decode_runs", check_decode_runs},
                 {"decode_long_contexts", check_decode_long_contexts},
                 {"decode_independence", check_decode_independence},
                 {"decode_replay", check_decode_replay},
                 {"prefill_kernels", check_prefill_kernels},
                 {"prefill_parts", check_prefill_parts},
                 {"prefill_odd_groups", check_prefill_odd_groups},
                 {"prefill_independence", check_prefill_independence},
                 {"prefill_causality", check_prefill_causality},
                 {"prefill_fault", check_prefill_fault},
                 {"embed", check_embed},
                 {"copy_blocks", check_copy_blocks},
                 {"select_sizes", check_select_sizes},
                 {"select_large_vocabulary", check_select_large_vocabulary},
                 {"select_ties", check_select_ties},
                 {"select_faults", check_select_faults},
             });
}
