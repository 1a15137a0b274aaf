#include "base/os/cpus.h"

#include <sys/sysctl.h>

#include <algorithm>
#include <cstddef>

namespace llama2q {
namespace {

// A number that the system knows by this name; 0 if it does not.
int sysctl_number(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

}  // namespace

// There is no affinity: a thread may run on any processor, and its QoS class decides on which.
int allowed_cpus() { return std::max(1, sysctl_number("hw.activecpu")); }

// Level 0 is that of the performance cores; Intel Macs have no levels.
int fast_cores() {
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
    if (const int cores = sysctl_number(name); cores > 0) return cores;
  }
  return 1;
}

double quota_cores() { return 1e9; }

// Apple's names for them on macOS 12 and newer; before, the sysctls are not there, and the first
// of these processors, M1, had the first of these extensions.
ArmFeatures arm_features() {
#if defined(__aarch64__)
  return {.dotprod = sysctl_number("hw.optional.arm.FEAT_DotProd") != 0 ||
                     sysctl_number("hw.optional.armv8_2_sha512") != 0,
          .i8mm = sysctl_number("hw.optional.arm.FEAT_I8MM") != 0,
          .bf16 = sysctl_number("hw.optional.arm.FEAT_BF16") != 0};
#else
  return {};
#endif
}

}  // namespace llama2q
