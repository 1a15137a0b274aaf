// attend_prefill(): within float64's bounds, and a row's result is its own.
#include "checks.h"
#include "harness.h"
#include "reference.h"
#include "step.h"

namespace checks {
namespace {

constexpr KvType kTypes[] = {KvType::kF16, KvType::kInt8};

std::vector<cuda::PrefillTile> cut(const Step& step) {
  const int64_t group = step.shape.n_heads / step.shape.n_kv_heads;
  std::vector<cuda::PrefillTile> tiles(
      static_cast<size_t>(cuda::most_prefill_tiles(step.n_tokens(), group)));
  const int64_t n = cuda::cut_prefill_tiles(step.positions.data(), step.sequence_of_token.data(),
                                            step.n_tokens(), group, tiles.data());
  expect(n <= static_cast<int64_t>(tiles.size()), "more tiles than there are at most");
  tiles.resize(static_cast<size_t>(n));
  return tiles;
}

struct Outcome {
  std::vector<float> out;
  int32_t fault;
};

Outcome prefill(const Step& step, const std::vector<cuda::PrefillTile>& tiles) {
  DeviceStep device(step);
  const auto bytes = reinterpret_cast<const int32_t*>(tiles.data());
  Buffer<int32_t> list(std::vector<int32_t>(bytes, bytes + 2 * tiles.size()));
  cuda::attend_prefill(stream(), device.attend_args(),
                       reinterpret_cast<const cuda::PrefillTile*>(list.data()),
                       static_cast<int64_t>(tiles.size()));
  return {device.out.read(), device.fault.read()[0]};
}

std::vector<float> prefill(const Step& step) {
  const Outcome outcome = prefill(step, cut(step));
  expect(outcome.fault == 0, "a fault was raised");
  return outcome.out;
}

void expect_right(const Shape& shape, const std::vector<Part>& parts, uint32_t seed) {
  Step step = make_step(shape, parts, seed);
  append_on_host(step);
  expect_close(prefill(step), prefill_reference(step), describe(shape));
}

}  // namespace

void check_prefill_kernels() {
  for (const int64_t head_dim : {48, 64, 96, 128, 256}) {
    const bool fast = head_dim == 64 || head_dim == 128;
    expect(!cuda::has_prefill(KvType::kF32, head_dim), "a kernel for f32");
    expect(cuda::has_prefill(KvType::kF16, head_dim) == fast, "f16");
    expect(cuda::has_prefill(KvType::kInt8, head_dim) == fast, "int8");
  }
}

// Whole prompts and such with a context, around the edges of tiles, warps and blocks.
void check_prefill_parts() {
  uint32_t seed = 200;
  for (const KvType type : kTypes) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t group : {1, 2, 4, 8}) {
        expect_right({type, head_dim, 2 * group, 2}, {{0, 17}, {63, 2}, {100, 20}}, seed++);
      }
      expect_right({type, head_dim, 1, 1}, {{0, 130}, {64, 64}, {61, 70}, {5, 1}}, seed++);
    }
  }
}

// A group that is no power of two: a token's heads lie in two tiles.
void check_prefill_odd_groups() {
  for (const KvType type : kTypes) {
    expect_right({type, 64, 6, 2}, {{30, 50}}, 300);
    expect_right({type, 64, 71, 1}, {{62, 3}}, 301);
  }
}

// A row has the same bits in any tile and beside any others.
void check_prefill_independence() {
  for (const KvType type : kTypes) {
    const Shape shape{type, 64, 2, 1};
    Step step = make_step(shape, {{70, 40}, {0, 9}}, 310);
    append_on_host(step);
    const std::vector<float> together = prefill(step);
    expect_equal(prefill(step), together, describe(shape) + ": again");
    std::vector<cuda::PrefillTile> small;
    for (int32_t row = 0; row < 98; row += 7) small.push_back({row, row == 77 ? 3 : 7});
    for (cuda::PrefillTile& tile : small) {
      if (tile.first_row > 77) tile.first_row -= 4;  // the second sequence begins at row 80
    }
    small.push_back({94, 4});
    expect_equal(prefill(step, small).out, together, describe(shape) + ": other tiles");
  }
}

// What comes after a token does not move it.
void check_prefill_causality() {
  for (const KvType type : kTypes) {
    const Shape shape{type, 64, 2, 1};
    Step step = make_step(shape, {{10, 75}}, 320);
    append_on_host(step);
    const std::vector<float> before = prefill(step);
    for (int64_t t = 75 - 30; t < 75; ++t) {
      for (int64_t d = 0; d < 64; ++d) {
        step.k[static_cast<size_t>(t * 64 + d)] *= 3.0f;
        step.v[static_cast<size_t>(t * 64 + d)] = 50.0f;
      }
    }
    append_on_host(step);
    const std::vector<float> after = prefill(step);
    const auto first = [](const std::vector<float>& x) {
      return std::vector<float>(x.begin(), x.begin() + 45 * 128);
    };
    expect_equal(first(after), first(before), describe(shape));
  }
}

// q beyond f16.
void check_prefill_fault() {
  for (const KvType type : kTypes) {
    Step step = make_step({type, 128, 1, 1}, {{0, 20}}, 330);
    append_on_host(step);
    step.q[19 * 128 + 77] = 1e6f;
    expect(prefill(step, cut(step)).fault == 7, "q that f16 does not hold went unnoticed");
  }
}

}  // namespace checks
