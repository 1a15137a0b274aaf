// Brings a file into the page cache by reading it in several threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace llama2q {

// Reads the bytes [begin, end) of the file and throws them away; ends early if `stop` is set or the
// file cannot be read.
void read_in_parallel(int file, int64_t begin, int64_t end, const std::atomic<bool>& stop) noexcept;

}  // namespace llama2q
