// What the file says of the program or library that runs: dladdr() does not know functions of
// internal linkage, and nothing knows sections.
#pragma once

#include <string>
#include <vector>

namespace cuda_emulation {

struct Bytes {
  unsigned char* begin;
  unsigned char* end;
};

// The name of a function as the linker knows it; empty in a binary without symbols.
std::string symbol_of(const void* function);
// Where the sections lie whose names begin so, of the binary that the emulation is linked into.
std::vector<Bytes> own_sections(const std::string& prefix);

}  // namespace cuda_emulation
