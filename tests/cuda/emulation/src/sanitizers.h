// What a build with sanitizers adds; nothing in others.
#pragma once

#include <cstddef>

namespace cuda_emulation {

// Is AddressSanitizer there?
bool watches_addresses();
// Makes a touch of these bytes an error, or no longer.
void forbid(const void* address, size_t bytes);
void permit(const void* address, size_t bytes);
// Called before a sanitizer ends the process.
void before_death(void (*callback)());

}  // namespace cuda_emulation
