// The checks, file by file; main.cpp names them.
#pragma once

namespace checks {

void check_placed_codes();
void check_placed_scales();
void check_grids();

void check_rms_norm();
void check_records();
void check_input_faults();

void check_integers();
void check_few_tokens();
void check_steps_agree();
void check_several_matrices();
void check_add();
void check_swiglu();
void check_little_shared_memory();
void check_dense();

void check_integers_of_many();
void check_many_tokens();
void check_many_epilogues();
void check_splits();

void check_append_floats();
void check_append_int8();
void check_append_steps_agree();
void check_append_faults();
void check_append_left_over();

}  // namespace checks
