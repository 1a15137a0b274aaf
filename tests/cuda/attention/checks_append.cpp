// rope_append(): the bytes of the CPU's scalar kernels.
#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "harness.h"
#include "step.h"

namespace checks {
namespace {

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8};

void expect_same_bytes(Step step, const std::string& what) {
  DeviceStep device(step);
  cuda::rope_append(stream(), device.append_args());
  const bool finite = rope_append_on_host(step);
  expect(device.fault.read()[0] == (finite ? 0 : 7), what + ": fault");
  if (!finite) return;
  expect_equal(device.q.read(), step.q, what + ": q");
  expect_equal(device.k.read(), step.cache->k, what + ": K");
  expect_equal(device.v.read(), step.cache->v, what + ": V");
  expect_equal(device.k_scales.read(), step.cache->k_scales, what + ": K's scales");
  expect_equal(device.v_scales.read(), step.cache->v_scales, what + ": V's scales");
}

}  // namespace

void check_append_shapes() {
  uint32_t seed = 1;
  for (const KvType type : kTypes) {
    for (const int64_t head_dim : {2, 6, 8, 48, 64, 126, 128, 256}) {
      const Shape shape{type, head_dim, 4, 2};
      expect_same_bytes(make_step(shape, {{0, 1}, {61, 5}, {64, 1}, {127, 2}}, seed++),
                        describe(shape));
    }
  }
}

// Rows of one magnitude: zeros, the smallest and largest that the types hold, and in between.
void check_append_magnitudes() {
  for (const KvType type : kTypes) {
    for (const float magnitude : {0.0f,
                                  -0.0f,
                                  0x1p-149f,
                                  0x1p-126f,
                                  0x1p-40f,
                                  0x1p-31f,
                                  0x1p-24f,
                                  0x1p-22f,
                                  0x1p-15f,
                                  1.0f / 3,
                                  1.0f,
                                  127.0f,
                                  65504.0f,
                                  65519.0f,
                                  65520.0f,
                                  0x1p22f,
                                  0x1p23f,
                                  0x1p100f,
                                  std::numeric_limits<float>::infinity(),
                                  std::nanf("")}) {
      const Shape shape{type, 16, 1, 1};
      Step step = make_step(shape, {{3, 4}}, 5);
      for (float& x : step.k) x = 0.25f * x * magnitude;
      for (size_t i = 0; i < step.v.size(); ++i) {
        step.v[i] = magnitude * static_cast<float>(static_cast<int>(i % 3) - 1);
      }
      expect_same_bytes(step, describe(shape) + ", magnitude " + std::to_string(magnitude));
    }
  }
}

// Ties of rint and of f16, and values just beside them.
void check_append_ties() {
  for (const KvType type : kTypes) {
    const Shape shape{type, 64, 1, 1};
    Step step = make_step(shape, {{0, 3}}, 6);
    std::fill(step.cos.begin(), step.cos.end(), 1.0f);
    std::fill(step.sin.begin(), step.sin.end(), 0.0f);
    for (size_t i = 0; i < step.k.size(); ++i) {
      const auto n = static_cast<float>(i % 64);
      step.k[i] = i % 64 == 63 ? 127.0f : n + 0.5f;
      const float at = 1.0f + (n + 0.5f) * 0x1p-10f;
      step.v[i] = i % 3 == 0 ? at : std::nextafter(at, i % 3 == 1 ? 0.0f : 2.0f);
    }
    expect_same_bytes(step, describe(shape) + ", ties");
  }
}

// One value that the cache cannot hold is enough.
void check_append_faults() {
  for (const KvType type : kTypes) {
    for (const bool in_k : {false, true}) {
      const Shape shape{type, 48, 2, 2};
      Step step = make_step(shape, {{10, 3}}, 7);
      (in_k ? step.k : step.v)[101] = std::nanf("");
      DeviceStep device(step);
      cuda::rope_append(stream(), device.append_args());
      expect(device.fault.read()[0] == 7, describe(shape) + ": a NaN went unnoticed");
      expect(!rope_append_on_host(step), describe(shape) + ": the CPU takes a NaN");
    }
  }
}

}  // namespace checks
