// The tokens of one op call: where each stands, and the block tables of their sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace llama2q {

// Tokens [begin, begin + n_tokens) of a step, checked. Pointers are borrowed from the caller.
struct Batch {
  int64_t n_tokens;
  const int32_t* positions;          // i32 [n_tokens]
  const int32_t* sequence_of_token;  // i32 [n_tokens]
  const int32_t* block_tables;       // i32 [n_sequences, max_blocks]
  int64_t n_sequences;
  int64_t max_blocks;
  std::vector<float> cos;  // f32 [n_tokens, head_dim / 2]
  std::vector<float> sin;
};

// Throws InvalidArgument unless: positions are >= 0; tokens of a sequence stand together, ascending
// and consecutive; sequence ids are in range; every position has a block in [0, n_blocks); and no
// block that is written stands in two places of the tables.
void check_batch(const Batch& batch, int64_t n_blocks);

// Fills batch.cos and batch.sin: of float64 angles position * inv_freq[i], times attention_factor
// (YaRN's; else 1), rounded to float32 last.
void fill_rope(Batch& batch, const std::vector<double>& inv_freq, double attention_factor);

// Throws InvalidArgument unless every frequency is in [0, 1] and the factor in (0, 1000].
void check_rope(const std::vector<double>& inv_freq, double attention_factor);

}  // namespace llama2q
