// What penalties, bias and bans do to a row of logits: part of the numeric contract.
#pragma once

#include <cstdint>
#include <span>

namespace llama2q {

struct LogitEdits {
  std::span<const int32_t> bias_ids;  // distinct
  std::span<const float> biases;      // [bias_ids]; -inf bans a token
  std::span<const int32_t> seen_ids;  // distinct: the tokens of prompt and output
  std::span<const int32_t> counts;    // [seen_ids]: times in the output
  // Rounded to float32 here, under the contract's environment.
  double repetition = 1.0;  // above 0
  double frequency = 0.0;
  double presence = 0.0;
  std::span<const int32_t> banned_ids;
};

// Edits logits f32 [n] in place; every operation is one float32 operation, in this order:
//   x = x + bias                                    for each of bias_ids
//   x = x > 0 ? x / repetition : x * repetition     for each of seen_ids, then, if its count > 0:
//   x = x - frequency * count
//   x = x - presence
//   x = -inf                                        for each of banned_ids
// Throws InvalidArgument for an id outside [0, n), a negative count, a value that is not finite.
void edit_logits(float* logits, int64_t n, const LogitEdits& edits);

}  // namespace llama2q
