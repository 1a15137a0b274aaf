// Attention in float64, and how far a kernel may be off.
#pragma once

#include <vector>

#include "step.h"

namespace checks {

struct Reference {
  std::vector<double> out;    // [n_tokens, n_heads, head_dim]
  std::vector<double> bound;  // likewise
};

// From the bytes of step.cache. The bounds are derived in reference.cpp.
Reference decode_reference(const Step& step);
Reference prefill_reference(const Step& step);

// Each value is within its bound; nothing is NaN. `what` names the case.
void expect_close(const std::vector<float>& found, const Reference& reference,
                  const std::string& what);

}  // namespace checks
