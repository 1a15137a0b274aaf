#include "base/os/cpus.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace llama2q {
namespace {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<int> affinity() {
  // Larger than any machine's mask, so that one call is enough.
  constexpr int kMaxCpus = 8192;
  cpu_set_t* mask = CPU_ALLOC(kMaxCpus);
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  std::vector<int> cpus;
  if (mask != nullptr && sched_getaffinity(0, bytes, mask) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, mask)) cpus.push_back(cpu);
    }
  }
  if (mask != nullptr) CPU_FREE(mask);
  return cpus;
}

// Relative speed of a core: cpu_capacity on Arm, the maximum frequency elsewhere; 0 if unknown.
double core_speed(const std::string& cpu) {
  for (const char* file : {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"}) {
    const std::string line = read_line(cpu + file);
    if (!line.empty()) return std::strtod(line.c_str(), nullptr);
  }
  return 0.0;
}

}  // namespace

int allowed_cpus() { return static_cast<int>(affinity().size()); }

int fast_cores() {
  struct Core {
    std::string siblings;
    double speed;
  };
  std::vector<Core> cores;
  std::set<std::string> seen;
  double fastest = 0.0;
  for (int cpu : affinity()) {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    std::string siblings = read_line(folder + "/topology/thread_siblings_list");
    if (siblings.empty()) siblings = std::to_string(cpu);
    if (!seen.insert(siblings).second) continue;
    cores.push_back({siblings, core_speed(folder)});
    fastest = std::max(fastest, cores.back().speed);
  }
  // Efficiency cores run far below the fastest; turbo bins differ by a few per cent only.
  return static_cast<int>(std::count_if(
      cores.begin(), cores.end(), [&](const Core& core) { return core.speed >= 0.8 * fastest; }));
}

double quota_cores() {
  constexpr double kUnlimited = 1e9;
  double quota = 0.0, period = 0.0;
  std::istringstream v2(read_line("/sys/fs/cgroup/cpu.max"));
  if (v2 >> quota >> period && period > 0.0) return quota / period;
  std::istringstream v1(read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"));
  std::istringstream v1_period(read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
  if (v1 >> quota && v1_period >> period && quota > 0.0 && period > 0.0) return quota / period;
  return kUnlimited;
}

ArmFeatures arm_features() {
#if defined(__aarch64__)
  // Bits of AT_HWCAP and AT_HWCAP2, as the kernel's interface fixes them.
  const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
  return {.dotprod = (one >> 20 & 1u) != 0,
          .i8mm = (two >> 13 & 1u) != 0,
          .bf16 = (two >> 14 & 1u) != 0};
#else
  return {};
#endif
}

}  // namespace llama2q
