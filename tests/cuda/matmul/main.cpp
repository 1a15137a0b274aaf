#include "checks.h"
#include "harness.h"

int main(int n_arguments, char** arguments) {
  using namespace checks;
  return run(n_arguments, arguments,
             {
                 {"placed_codes", check_placed_codes},
                 {"placed_scales", check_placed_scales},
                 {"grids", check_grids},
                 {"rms_norm", check_rms_norm},
                 {"records", check_records},
                 {"input_faults", check_input_faults},
                 {"integers", check_integers},
                 {"few_tokens", check_few_tokens},
                 {"steps_agree", check_steps_agree},
                 {"several_matrices", check_several_matrices},
                 {"add", check_add},
                 {"swiglu", check_swiglu},
                 {"little_shared_memory", check_little_shared_memory},
                 {"dense", check_dense},
                 {"integers_of_many", check_integers_of_many},
                 {"many_tokens", check_many_tokens},
                 {"many_epilogues", check_many_epilogues},
                 {"splits", check_splits},
                 {"append_floats", check_append_floats},
                 {"append_int8", check_append_int8},
                 {"append_steps_agree", check_append_steps_agree},
                 {"append_faults", check_append_faults},
                 {"append_left_over", check_append_left_over},
             });
}
