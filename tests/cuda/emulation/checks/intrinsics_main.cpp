#include "harness.h"
#include "intrinsics.h"

int main(int n_arguments, char** arguments) {
  using namespace checks;
  return run(n_arguments, arguments,
             {
                 {"lane", check_lane},
                 {"shuffles", check_shuffles},
                 {"permute_bytes", check_permute_bytes},
                 {"dots", check_dots},
                 {"half_to_float", check_half_to_float},
                 {"float_to_half", check_float_to_half},
                 {"packed_halves", check_packed_halves},
                 {"half_arithmetic", check_half_arithmetic},
                 {"exp2", check_exp2},
                 {"mma_us8", check_mma_us8},
                 {"mma_ss8", check_mma_ss8},
                 {"mma_f16", check_mma_f16},
                 {"mma_f16_rounds", check_mma_f16_rounds},
                 {"load_matrix", check_load_matrix},
                 {"load_matrix_trans", check_load_matrix_trans},
                 {"loaded_product", check_loaded_product},
                 {"barriers", check_barriers},
                 {"dynamic_shared", check_dynamic_shared},
                 {"much_dynamic_shared", check_much_dynamic_shared},
                 {"copies", check_copies},
                 {"copy_pipeline", check_copy_pipeline},
                 {"load_streamed", check_load_streamed},
                 {"tickets", check_tickets},
                 {"faults", check_faults},
                 {"stream_order", check_stream_order},
             });
}
