#include "base/os/cpus.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/os/windows/windows.h"

namespace llama2q {
namespace {

struct Core {
  int efficiency_class;  // the higher, the faster
  int allowed;           // its logical processors that this process may run on
};

// The mask of each processor group; 0 for one that this process does not run in. The mask of a
// process says nothing if it runs in several groups: then it has no affinity, but all of them.
std::vector<KAFFINITY> allowed_masks() {
  std::vector<KAFFINITY> masks(::GetMaximumProcessorGroupCount(), 0);
  std::vector<USHORT> groups(masks.size());
  auto n_groups = static_cast<USHORT>(groups.size());
  if (!::GetProcessGroupAffinity(::GetCurrentProcess(), &n_groups, groups.data())) {
    n_groups = static_cast<USHORT>(groups.size());
    std::iota(groups.begin(), groups.end(), USHORT{0});
  }
  DWORD_PTR process = 0, system = 0;
  const bool bound =
      n_groups == 1 && ::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system) != 0;
  for (USHORT i = 0; i < n_groups; ++i) {
    if (groups[i] < masks.size()) masks[groups[i]] = bound ? process : ~KAFFINITY{0};
  }
  return masks;
}

std::vector<Core> cores() {
  DWORD size = 0;
  ::GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &size);
  std::vector<std::byte> buffer(size);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data());
  if (size == 0 || !::GetLogicalProcessorInformationEx(RelationProcessorCore, first, &size)) {
    return {};
  }
  const std::vector<KAFFINITY> masks = allowed_masks();
  std::vector<Core> found;
  for (DWORD at = 0; at < size;) {
    const auto* entry =
        reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data() + at);
    at += entry->Size;
    // A core lies within one group.
    const GROUP_AFFINITY& place = entry->Processor.GroupMask[0];
    const KAFFINITY mask = place.Group < masks.size() ? masks[place.Group] & place.Mask : 0;
    if (mask != 0) found.push_back({entry->Processor.EfficiencyClass, std::popcount(mask)});
  }
  return found;
}

}  // namespace

int allowed_cpus() {
  int count = 0;
  for (const Core& core : cores()) count += core.allowed;
  return std::max(1, count);
}

int fast_cores() {
  const std::vector<Core> all = cores();
  int fastest = 0;
  for (const Core& core : all) fastest = std::max(fastest, core.efficiency_class);
  return std::max(1, static_cast<int>(std::count_if(all.begin(), all.end(), [&](const Core& core) {
                    return core.efficiency_class == fastest;
                  })));
}

double quota_cores() { return 1e9; }

ArmFeatures arm_features() {
#if defined(__aarch64__)
  // PF_ARM_V82_DP_, PF_ARM_V82_I8MM_ and PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE.
  const auto has = [](DWORD feature) { return ::IsProcessorFeaturePresent(feature) != 0; };
  return {.dotprod = has(43), .i8mm = has(66), .bf16 = has(68)};
#else
  return {};
#endif
}

}  // namespace llama2q
