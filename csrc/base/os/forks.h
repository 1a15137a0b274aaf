// Whether this process is a fork: its parent's threads do not exist in it.
#pragma once

#include <cstdint>

namespace llama2q {

// How many forks lie between the first call and this process.
uint64_t fork_count();

}  // namespace llama2q
