// Which instruction sets this CPU and operating system offer, and which cores to use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/args.h"

namespace llama2q {

// Tables that this build holds and this CPU can run, slowest first; "scalar" is always there.
const std::vector<const KernelTable*>& available_kernels();

// Names of the tables that this build holds, slowest first, whether the CPU can run them or not.
std::vector<std::string> compiled_kernels();

// What this CPU and operating system offer of what our kernels use or may use: "avx2", "fma", ...,
// on Arm "asimddp", "i8mm", "bf16". Empty where nothing is asked (other families).
std::vector<std::string> cpu_features();

// LLAMA2Q_ISA from the environment, or the fastest. Throws UnsupportedIsa for a name that is
// unknown or not available, with the names that are.
const KernelTable& default_kernels();

// The table of that name; "" is default_kernels().
const KernelTable& kernels_named(std::string_view name);

// Physical cores that this process may run on: its affinity mask, one thread per core, the fastest
// kind where the CPU has several, and at most the cgroup's quota. At least 1.
int default_thread_count();

// How many threads can run at once: the CPUs of the affinity mask, siblings of a core included,
// and at most the cgroup's quota. At least 1.
int usable_cpus();

}  // namespace llama2q
