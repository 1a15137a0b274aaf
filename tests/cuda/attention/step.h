// Steps to test with: sequences with blocks in random places, K and V in a cache of bytes that the
// CPU's scalar kernel has written.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "harness.h"
#include "kernels/args.h"

namespace checks {

using llama2q::AppendArgs;
using llama2q::element_bytes;
using llama2q::EmbeddingView;
using llama2q::kBlockSize;
using llama2q::KvLayerView;
using llama2q::KvType;
using llama2q::MatrixKind;
namespace cuda = llama2q::cuda;

// `what` names the case.
template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& wanted,
                  const std::string& what) {
  try {
    expect_equal(got, wanted);
  } catch (const Failure& failure) {
    throw Failure(what + ": " + failure.what());
  }
}

struct Shape {
  KvType type;
  int64_t head_dim, n_heads, n_kv_heads;
};

std::string describe(const Shape& shape);

// A sequence of a step: tokens that are in the cache, and those that come now.
struct Part {
  int64_t context, n_new;
};

struct HostCache {
  HostCache(const Shape& shape, int64_t n_blocks);
  KvLayerView view();

  Shape shape;
  int64_t n_blocks;
  std::vector<uint8_t> k, v;  // not written: 0xff, NaN in float types
  std::vector<uint16_t> k_scales, v_scales;
};

struct Step {
  Shape shape;
  std::vector<int32_t> positions, sequence_of_token, block_tables;
  int64_t max_blocks = 0, n_blocks = 3;  // three blocks are nobody's
  std::vector<float> q, k, v;            // of the step's tokens, before RoPE
  std::vector<float> cos, sin;           // f32 [n_tokens, head_dim / 2]
  std::shared_ptr<HostCache> cache;

  int64_t n_tokens() const { return static_cast<int64_t>(positions.size()); }
  const int32_t* table(int64_t token) const;
};

// `seed` decides values and places. K and V of earlier tokens are in the cache.
Step make_step(const Shape& shape, const std::vector<Part>& parts, uint32_t seed);

// Writes K and V of the step's tokens into its cache, by the CPU's scalar kernel; not rotated.
// Says whether all of them could be.
bool append_on_host(Step& step);
// The same with RoPE, of q too.
bool rope_append_on_host(Step& step);

// A step on the device.
struct DeviceStep {
  explicit DeviceStep(const Step& step);
  KvLayerView cache();
  cuda::TokenView tokens() const;
  cuda::AttendArgs attend_args();
  cuda::RopeAppendArgs append_args();

  Shape shape;
  int64_t n_tokens, n_blocks, max_blocks;
  Buffer<int32_t> positions, sequence_of_token, block_tables;
  Buffer<float> q, k_rows, v_rows, cos, sin, out;
  Buffer<uint8_t> k, v;
  Buffer<uint16_t> k_scales, v_scales;
  Buffer<int32_t> fault;
};

// Launches may overlap where the device can do that.
cuda::Stream stream();

}  // namespace checks
