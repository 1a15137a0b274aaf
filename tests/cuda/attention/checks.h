// The checks, file by file; main.cpp names them.
#pragma once

namespace checks {

void check_append_shapes();
void check_append_magnitudes();
void check_append_ties();
void check_append_faults();

void check_decode_positions_f32();
void check_decode_positions_f16();
void check_decode_positions_int8();
void check_decode_odd_shapes();
void check_decode_runs();
void check_decode_long_contexts();
void check_decode_independence();
void check_decode_replay();

void check_prefill_kernels();
void check_prefill_parts();
void check_prefill_odd_groups();
void check_prefill_independence();
void check_prefill_causality();
void check_prefill_fault();

void check_embed();
void check_copy_blocks();

void check_select_sizes();
void check_select_large_vocabulary();
void check_select_ties();
void check_select_faults();

}  // namespace checks
