// What the operating system is told of a thread.
#pragma once

namespace llama2q {

// Called by a new thread of the pool, number 1 and on: its name for debuggers and monitors, and
// that somebody waits for its results, so that it gets a performance core (macOS, Windows).
void begin_compute_thread(int number) noexcept;

}  // namespace llama2q
