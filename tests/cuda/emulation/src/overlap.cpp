#include "overlap.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "emulation/control.h"
#include "state.h"

namespace cuda_emulation {

namespace {

constexpr size_t kMostBytes = size_t{16} << 20;
constexpr size_t kUnit = 16;  // of comparison

struct Range {
  unsigned char* begin;
  size_t bytes;
};

struct Snapshot {
  Range range;
  std::vector<unsigned char> content;
};

std::vector<Snapshot> before;  // of every allocation
std::vector<Range> written;    // sorted, apart from each other
std::vector<unsigned char> hidden;
bool is_hidden = false;

void merge_written() {
  std::sort(written.begin(), written.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : written) {
    if (!merged.empty() && range.begin <= merged.back().begin + merged.back().bytes) {
      const auto end =
          std::max(range.begin + range.bytes, merged.back().begin + merged.back().bytes);
      merged.back().bytes = static_cast<size_t>(end - merged.back().begin);
    } else {
      merged.push_back(range);
    }
  }
  written = std::move(merged);
}

}  // namespace

void everything_has_ended() { written.clear(); }

void begin_writes() {
  before.clear();
  if (machine().major < 9) return;
  for (const auto& [address, allocation] : runtime().allocations) {
    if (allocation.kind != MemoryKind::kDevice || allocation.bytes > kMostBytes) continue;
    auto* begin = reinterpret_cast<unsigned char*>(address);
    before.push_back({{begin, allocation.bytes}, {begin, begin + allocation.bytes}});
  }
}

void end_writes() {
  for (const Snapshot& snapshot : before) {
    for (size_t at = 0; at < snapshot.range.bytes; at += kUnit) {
      const size_t n = std::min(kUnit, snapshot.range.bytes - at);
      unsigned char* now = snapshot.range.begin + at;
      if (std::memcmp(now, &snapshot.content[at], n) != 0) written.push_back({now, n});
    }
  }
  before.clear();
  merge_written();
}

void hide() {
  hidden.clear();
  for (const Range& range : written) {
    hidden.insert(hidden.end(), range.begin, range.begin + range.bytes);
    std::memset(range.begin, 0xff, range.bytes);
  }
  is_hidden = true;
}

std::string reveal() {
  if (!is_hidden) return "";
  is_hidden = false;
  bool touched = false;
  const unsigned char* content = hidden.data();
  for (const Range& range : written) {
    const auto* end = range.begin + range.bytes;
    touched |= std::find_if(static_cast<const unsigned char*>(range.begin), end,
                            [](unsigned char byte) { return byte != 0xff; }) != end;
    std::memcpy(range.begin, content, range.bytes);
    content += range.bytes;
  }
  return touched ? "writes before wait_for_previous() to what launches before it wrote" : "";
}

}  // namespace cuda_emulation
