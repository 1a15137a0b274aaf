// The system's own header, less what would get in the way. Windows 10 is the oldest.
#pragma once

#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
