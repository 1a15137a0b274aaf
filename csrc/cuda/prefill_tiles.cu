// How a step is cut into the tiles of attend_prefill(); host only.
#include <algorithm>

#include "cuda/attention.h"

namespace llama2q::cuda {

int64_t cut_prefill_tiles(const int32_t* positions, const int32_t* sequence_of_token,
                          int64_t n_tokens, int64_t group, PrefillTile* tiles) {
  int64_t n_tiles = 0;
  for (int64_t begin = 0, end; begin < n_tokens; begin = end) {
    end = begin + 1;
    while (end < n_tokens && sequence_of_token[end] == sequence_of_token[begin]) ++end;
    for (int64_t row = begin * group; row < end * group; row += kPrefillRows) {
      tiles[n_tiles++] = {static_cast<int32_t>(row),
                          static_cast<int32_t>(std::min(kPrefillRows, end * group - row))};
    }
  }
  const auto last_position = [&](const PrefillTile& tile) {
    return positions[(tile.first_row + tile.n_rows - 1) / group];
  };
  std::stable_sort(tiles, tiles + n_tiles, [&](const PrefillTile& a, const PrefillTile& b) {
    return last_position(a) > last_position(b);
  });
  return n_tiles;
}

}  // namespace llama2q::cuda
