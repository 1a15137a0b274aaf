#include "emulation/warp.h"

#include <array>

namespace cuda_emulation {

namespace {

struct Shuffle {
  uint32_t value;
  int source;  // a lane
};

void perform_shuffle(void* const* operands) {
  std::array<uint32_t, kWarp> values{};
  for (size_t l = 0; l < kWarp; ++l) values[l] = static_cast<Shuffle*>(operands[l])->value;
  for (size_t l = 0; l < kWarp; ++l) {
    auto& shuffle = *static_cast<Shuffle*>(operands[l]);
    shuffle.value = values[static_cast<size_t>(shuffle.source)];
  }
}

constexpr WarpOperation kShuffleXor{"shuffle_xor", perform_shuffle};
constexpr WarpOperation kShuffle{"shuffle", perform_shuffle};
constexpr WarpOperation kSyncWarp{"sync_warp", [](void* const*) {}};

uint32_t move(const WarpOperation& operation, uint32_t value, int source, const Place& place) {
  if (source < 0 || source >= kWarp) {
    fail(std::string(operation.name) + " with lane " + std::to_string(source), place);
  }
  Shuffle shuffle{value, source};
  rendezvous(operation, &shuffle, place);
  return shuffle.value;
}

}  // namespace

uint32_t exchange_xor(uint32_t value, int mask, const Place& place) {
  return move(kShuffleXor, value, lane_index() ^ mask, place);
}

uint32_t exchange(uint32_t value, int source, const Place& place) {
  return move(kShuffle, value, source, place);
}

void wait_for_warp(const Place& place) { rendezvous(kSyncWarp, nullptr, place); }

}  // namespace cuda_emulation
