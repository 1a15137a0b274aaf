// The largest of rows of logits, on the device.
#pragma once

#include <stdint.h>

#include "cuda/launch.h"
#include "cuda/work.h"

namespace llama2q::cuda {

struct SelectArgs {
  const float* logits;  // f32 [n_rows, vocab_size]
  int64_t n_rows;
  int64_t vocab_size;
  int64_t k;          // 1 to kMostSelected, at most vocab_size
  float* values;      // f32 [n_rows, k], descending; may be null
  int32_t* ids;       // i32 [n_rows, k]; of equal values the lower id first
  uint64_t* scratch;  // u64 [select_keys(...)]
  uint32_t* tickets;  // u32 [n_rows], 0 before the first call; 0 again after each
  int32_t* fault;     // NaN or +inf among the logits: `fault_code`, and the row is undefined
  int32_t fault_code;
};

// k = 1: argmax. -0 and +0 are equal.
void select(const Stream& stream, const SelectArgs& args);

}  // namespace llama2q::cuda
