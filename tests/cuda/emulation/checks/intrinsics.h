// The checks of csrc/cuda/intrinsics.h, by subject. Each compares with plain C++ on the host.
#pragma once

namespace checks {

// intrinsics_words.cu
void check_lane();
void check_shuffles();
void check_permute_bytes();
void check_dots();
void check_half_to_float();
void check_float_to_half();
void check_packed_halves();
void check_half_arithmetic();
void check_exp2();

// intrinsics_matrices.cu
void check_mma_us8();
void check_mma_ss8();
void check_mma_f16();
void check_mma_f16_rounds();
void check_load_matrix();
void check_load_matrix_trans();
void check_loaded_product();

// intrinsics_memory.cu
void check_barriers();
void check_dynamic_shared();
void check_much_dynamic_shared();
void check_copies();
void check_copy_pipeline();
void check_load_streamed();
void check_tickets();
void check_faults();
void check_stream_order();

}  // namespace checks
