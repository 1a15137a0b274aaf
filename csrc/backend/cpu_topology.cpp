#include <algorithm>
#include <cmath>

#include "backend/cpu_features.h"
#include "base/os/cpus.h"

namespace llama2q {

int default_thread_count() {
  const double cores = std::min(static_cast<double>(fast_cores()), quota_cores());
  return std::max(1, static_cast<int>(std::floor(cores)));
}

int usable_cpus() {
  const double cpus = std::min(static_cast<double>(allowed_cpus()), quota_cores());
  return std::max(1, static_cast<int>(std::ceil(cpus)));
}

}  // namespace llama2q
