#include "base/os/threads.h"

#include <cwchar>

#include "base/os/windows/windows.h"

namespace llama2q {

// Windows moves the threads of programs in the background to efficiency cores, unless told not to.
void begin_compute_thread(int number) noexcept {
  wchar_t name[32];
  std::swprintf(name, sizeof name / sizeof *name, L"llama2q-%d", number);
  ::SetThreadDescription(::GetCurrentThread(), name);
  THREAD_POWER_THROTTLING_STATE state{};
  state.Version = THREAD_POWER_THROTTLING_CURRENT_VERSION;
  state.ControlMask = THREAD_POWER_THROTTLING_EXECUTION_SPEED;
  ::SetThreadInformation(::GetCurrentThread(), ThreadPowerThrottling, &state, sizeof state);
}

}  // namespace llama2q
