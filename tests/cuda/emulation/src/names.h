// What functions are called.
#pragma once

#include <string>

namespace cuda_emulation {

// As the linker knows it, or null in a binary without symbols. The text stays.
const char* mangled_name(const void* function);
// As C++ says it, without parameters.
std::string kernel_name(const void* function);

}  // namespace cuda_emulation
