// The processors that this process may run on.
#pragma once

namespace llama2q {

// Logical processors that threads may run on.
int allowed_cpus();

// Physical cores among these; only those of the fastest kind where there are several.
int fast_cores();

// Cores that a quota of processor time is worth (cgroups); a large number without one.
double quota_cores();

// Whether the processor has the instructions of these Arm extensions; false elsewhere.
struct ArmFeatures {
  bool dotprod;  // sdot
  bool i8mm;     // smmla
  bool bf16;
};
ArmFeatures arm_features();

}  // namespace llama2q
