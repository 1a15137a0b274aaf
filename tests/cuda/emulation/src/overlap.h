// Programmatic launches begin while those before them still run, back to the last one that waited
// for all before it. Here launches do not overlap; instead, until a block of a programmatic launch
// says wait_for_previous(), what was written since then is hidden behind bytes 0xff.
#pragma once

#include <string>

namespace cuda_emulation {

// All that was given to a stream has ended: copies, launches without the attribute, graphs.
void everything_has_ended();
// Around a launch: finds what it writes. Allocations above 16 MiB (weights) are left out.
void begin_writes();
void end_writes();
// In a block of a programmatic launch. reveal() is harmless where nothing is hidden; it returns an
// error if the block wrote where something was hidden, or an empty string.
void hide();
std::string reveal();

}  // namespace cuda_emulation
