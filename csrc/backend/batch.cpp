#include "backend/batch.h"

#include <string>

#include "base/check.h"
#include "base/trig.h"
#include "kernels/args.h"

namespace llama2q {
namespace {

using std::to_string;

void check_order(const Batch& b) {
  // A table without columns may claim any number of rows, which `seen` would have to hold.
  require(b.n_tokens == 0 || b.max_blocks > 0, "block_tables have no columns");
  if (b.n_tokens == 0) return;
  std::vector<char> seen(static_cast<size_t>(b.n_sequences), 0);
  for (int64_t t = 0; t < b.n_tokens; ++t) {
    const int32_t sequence = b.sequence_of_token[t];
    require(sequence >= 0 && sequence < b.n_sequences,
            "sequence_of_token[" + to_string(t) + "] is " + to_string(sequence) + "; there are " +
                to_string(b.n_sequences) + " block tables");
    require(b.positions[t] >= 0,
            "positions[" + to_string(t) + "] is " + to_string(b.positions[t]) + "; expected >= 0");
    const bool continues = t > 0 && b.sequence_of_token[t - 1] == sequence;
    if (continues) {
      require(b.positions[t] == b.positions[t - 1] + 1,
              "positions of sequence " + to_string(sequence) + " go from " +
                  to_string(b.positions[t - 1]) + " to " + to_string(b.positions[t]) +
                  " at token " + to_string(t) + "; they must be consecutive");
    } else {
      char& started = seen[static_cast<size_t>(sequence)];
      require(started == 0, "tokens of sequence " + to_string(sequence) +
                                " do not stand together (token " + to_string(t) + ")");
      started = 1;
    }
  }
}

// Every block up to a sequence's last position must exist.
void check_tables(const Batch& b, int64_t n_blocks) {
  for (int64_t t = 0; t < b.n_tokens; ++t) {
    const int32_t sequence = b.sequence_of_token[t];
    if (t + 1 < b.n_tokens && b.sequence_of_token[t + 1] == sequence) continue;
    const int64_t needed = b.positions[t] / kBlockSize + 1;
    require(needed <= b.max_blocks, "position " + to_string(b.positions[t]) + " of sequence " +
                                        to_string(sequence) + " needs " + to_string(needed) +
                                        " blocks; its table has " + to_string(b.max_blocks));
    for (int64_t i = 0; i < needed; ++i) {
      const int32_t block = b.block_tables[sequence * b.max_blocks + i];
      require(block >= 0 && block < n_blocks, "block_tables[" + to_string(sequence) + ", " +
                                                  to_string(i) + "] is " + to_string(block) +
                                                  "; expected 0 to " + to_string(n_blocks - 1));
    }
  }
}

void check_written_blocks(const Batch& b, int64_t n_blocks) {
  std::vector<int32_t> holders(static_cast<size_t>(n_blocks), 0);
  for (int64_t i = 0; i < b.n_sequences * b.max_blocks; ++i) {
    const int32_t block = b.block_tables[i];
    if (block >= 0 && block < n_blocks) ++holders[static_cast<size_t>(block)];
  }
  for (int64_t t = 0; t < b.n_tokens; ++t) {
    const int64_t slot = b.sequence_of_token[t] * b.max_blocks + b.positions[t] / kBlockSize;
    const int32_t block = b.block_tables[slot];
    require(holders[static_cast<size_t>(block)] == 1,
            "block " + to_string(block) + " is written at position " + to_string(b.positions[t]) +
                " of sequence " + to_string(b.sequence_of_token[t]) + " but stands in " +
                to_string(holders[static_cast<size_t>(block)]) +
                " places of the block tables; copy it first");
  }
}

}  // namespace

void check_batch(const Batch& batch, int64_t n_blocks) {
  check_order(batch);
  check_tables(batch, n_blocks);
  check_written_blocks(batch, n_blocks);
}

void fill_rope(Batch& batch, const std::vector<double>& inv_freq, double attention_factor) {
  batch.cos.clear();
  batch.sin.clear();
  for (int64_t t = 0; t < batch.n_tokens; ++t) {
    for (const double frequency : inv_freq) {
      const SinCos value = sin_cos(batch.positions[t] * frequency);
      batch.cos.push_back(static_cast<float>(value.cos * attention_factor));
      batch.sin.push_back(static_cast<float>(value.sin * attention_factor));
    }
  }
}

void check_rope(const std::vector<double>& inv_freq, double attention_factor) {
  for (const double frequency : inv_freq) {
    require(frequency >= 0.0 && frequency <= 1.0, "a value of inv_freq lies outside [0, 1]");
  }
  require(attention_factor > 0.0 && attention_factor <= 1000.0,
          "attention_factor is " + to_string(attention_factor) +
              "; expected a number above 0, at most 1000");
}

}  // namespace llama2q
