#include "model/logit_edits.h"

#include <cmath>
#include <limits>
#include <string>

#include "base/check.h"

namespace llama2q {
namespace {

void check_ids(std::span<const int32_t> ids, int64_t n, const char* name) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < n, std::string(name) + " holds " + std::to_string(id) +
                                   "; expected 0 to " + std::to_string(n - 1));
  }
}

void check_edits(const LogitEdits& edits, int64_t n) {
  check_ids(edits.bias_ids, n, "bias_ids");
  check_ids(edits.seen_ids, n, "seen_ids");
  check_ids(edits.banned_ids, n, "banned_ids");
  require(
      edits.biases.size() == edits.bias_ids.size() && edits.counts.size() == edits.seen_ids.size(),
      "expected a bias per id of bias_ids and a count per id of seen_ids");
  for (const float bias : edits.biases) {
    require(bias < std::numeric_limits<float>::infinity(),
            "biases hold " + std::to_string(bias) + "; expected a finite number, or -inf");
  }
  for (const int32_t count : edits.counts) {
    require(count >= 0, "counts hold " + std::to_string(count) + "; expected at least 0");
  }
  const float repetition = static_cast<float>(edits.repetition);
  require(repetition > 0.0f && std::isfinite(repetition),
          "repetition is " + std::to_string(edits.repetition) + "; expected more than 0");
  require(std::isfinite(static_cast<float>(edits.frequency)) &&
              std::isfinite(static_cast<float>(edits.presence)),
          "frequency is " + std::to_string(edits.frequency) + ", presence " +
              std::to_string(edits.presence) + "; expected finite numbers");
}

}  // namespace

void edit_logits(float* logits, int64_t n, const LogitEdits& edits) {
  check_edits(edits, n);
  const float repetition = static_cast<float>(edits.repetition);
  const float frequency = static_cast<float>(edits.frequency);
  const float presence = static_cast<float>(edits.presence);
  for (size_t i = 0; i < edits.bias_ids.size(); ++i) logits[edits.bias_ids[i]] += edits.biases[i];
  for (size_t i = 0; i < edits.seen_ids.size(); ++i) {
    float& x = logits[edits.seen_ids[i]];
    x = x > 0.0f ? x / repetition : x * repetition;
    if (edits.counts[i] > 0) {
      x -= frequency * static_cast<float>(edits.counts[i]);
      x -= presence;
    }
  }
  for (const int32_t id : edits.banned_ids) logits[id] = -std::numeric_limits<float>::infinity();
}

}  // namespace llama2q
