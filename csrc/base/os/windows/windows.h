// The system's own header, less what would get in the way. Windows 10 is the oldest.
#pragma once

#if !defined(_WIN32_WINNT)
#define _WIN32_WINNT 0x0A00
#endif
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
