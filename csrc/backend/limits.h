// What this machine can do at most: rates that benchmarks are measured against.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/args.h"

namespace llama2q {

// (how it was done, rate) of each way tried.
using Rates = std::vector<std::pair<std::string, double>>;

// Int8 operations (a multiplication and its addition are two) per second of all threads together,
// for about `seconds`. Throws InvalidArgument.
Rates measure_dot_rate(const KernelTable& table, int n_threads, double seconds);

// Bytes per second at which all threads together read n_bytes of memory over and over, for about
// `seconds`. Throws InvalidArgument.
Rates measure_read_bandwidth(const KernelTable& table, int n_threads, int64_t n_bytes,
                             double seconds);

}  // namespace llama2q
