#include "step.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "isa/tables.h"

namespace checks {
namespace {

using Random = std::mt19937;

std::vector<float> normal(Random& random, int64_t n) {
  std::normal_distribution<float> draw;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = draw(random);
  return x;
}

int64_t blocks_for(const Part& part) {
  return (part.context + part.n_new + kBlockSize - 1) / kBlockSize;
}

AppendArgs append_args(Step& step) {
  return {.cache = step.cache->view(),
          .k = step.k.data(),
          .v = step.v.data(),
          .positions = step.positions.data(),
          .sequence_of_token = step.sequence_of_token.data(),
          .block_tables = step.block_tables.data(),
          .max_blocks = step.max_blocks};
}

// Each query looks at its own key most of all: a mask that is off by one shows.
void aim_queries(Step& step) {
  const Shape& shape = step.shape;
  const int64_t dim = shape.head_dim, group = shape.n_heads / shape.n_kv_heads;
  for (int64_t row = 0; row < step.n_tokens() * shape.n_heads; ++row) {
    const int64_t token = row / shape.n_heads, kv_head = row % shape.n_heads / group;
    const float* own = step.k.data() + (token * shape.n_kv_heads + kv_head) * dim;
    float* q = step.q.data() + row * dim;
    for (int64_t d = 0; d < dim; ++d) q[d] = 0.5f * q[d] + 0.5f * own[d];
  }
}

const char* name_of(KvType type) {
  return type == KvType::kF32 ? "f32" : type == KvType::kF16 ? "f16" : "int8";
}

}  // namespace

std::string describe(const Shape& shape) {
  return std::string(name_of(shape.type)) + ", head_dim " + std::to_string(shape.head_dim) + ", " +
         std::to_string(shape.n_heads) + " heads, " + std::to_string(shape.n_kv_heads) +
         " KV heads";
}

HostCache::HostCache(const Shape& s, int64_t blocks) : shape(s), n_blocks(blocks) {
  const auto rows = static_cast<size_t>(blocks * s.n_kv_heads * kBlockSize);
  const size_t bytes = rows * static_cast<size_t>(s.head_dim * element_bytes(s.type));
  k.assign(bytes, 0xff);
  v.assign(bytes, 0xff);
  k_scales.assign(s.type == KvType::kInt8 ? rows : 0, 0xffff);
  v_scales = k_scales;
}

KvLayerView HostCache::view() {
  const bool scaled = shape.type == KvType::kInt8;
  return {.type = shape.type,
          .n_blocks = n_blocks,
          .n_kv_heads = shape.n_kv_heads,
          .head_dim = shape.head_dim,
          .k = k.data(),
          .v = v.data(),
          .k_scales = scaled ? k_scales.data() : nullptr,
          .v_scales = scaled ? v_scales.data() : nullptr};
}

const int32_t* Step::table(int64_t token) const {
  return block_tables.data() + sequence_of_token[static_cast<size_t>(token)] * max_blocks;
}

Step make_step(const Shape& shape, const std::vector<Part>& parts, uint32_t seed) {
  Random random(seed);
  const auto n_parts = static_cast<int64_t>(parts.size());
  Step step;
  step.shape = shape;
  for (const Part& part : parts) {
    step.max_blocks = std::max(step.max_blocks, blocks_for(part) + 1);
    step.n_blocks += blocks_for(part);
  }
  std::vector<int32_t> places(static_cast<size_t>(step.n_blocks));
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), random);
  std::vector<int32_t> ids(parts.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  step.block_tables.assign(static_cast<size_t>(n_parts * step.max_blocks), -1);
  step.cache = std::make_shared<HostCache>(shape, step.n_blocks);

  Step earlier = step;
  for (size_t p = 0; p < parts.size(); ++p) {
    for (int64_t b = 0; b < blocks_for(parts[p]); ++b) {
      step.block_tables[static_cast<size_t>(ids[p] * step.max_blocks + b)] = places.back();
      places.pop_back();
    }
    for (int64_t i = 0; i < parts[p].context + parts[p].n_new; ++i) {
      Step& of = i < parts[p].context ? earlier : step;
      of.positions.push_back(static_cast<int32_t>(i));
      of.sequence_of_token.push_back(ids[p]);
    }
  }
  const int64_t kv = shape.n_kv_heads * shape.head_dim;
  earlier.block_tables = step.block_tables;
  earlier.k = normal(random, earlier.n_tokens() * kv);
  earlier.v = normal(random, earlier.n_tokens() * kv);
  append_on_host(earlier);
  step.k = normal(random, step.n_tokens() * kv);
  step.v = normal(random, step.n_tokens() * kv);
  step.q = normal(random, step.n_tokens() * shape.n_heads * shape.head_dim);
  aim_queries(step);
  for (int64_t i = 0; i < step.n_tokens() * shape.head_dim / 2; ++i) {
    const double angle = std::uniform_real_distribution<double>(-3.2, 3.2)(random);
    step.cos.push_back(static_cast<float>(std::cos(angle)));
    step.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  return step;
}

bool append_on_host(Step& step) {
  const AppendArgs args = append_args(step);
  bool finite = true;
  for (int64_t t = 0; t < step.n_tokens(); ++t) {
    finite = llama2q::kScalarKernels.append(args, t) && finite;
  }
  return finite;
}

bool rope_append_on_host(Step& step) {
  const Shape& shape = step.shape;
  const int64_t dim = shape.head_dim;
  for (int64_t t = 0; t < step.n_tokens(); ++t) {
    const float* cos = step.cos.data() + t * dim / 2;
    const float* sin = step.sin.data() + t * dim / 2;
    llama2q::kScalarKernels.rope(step.q.data() + t * shape.n_heads * dim, cos, sin, shape.n_heads,
                                 dim);
    llama2q::kScalarKernels.rope(step.k.data() + t * shape.n_kv_heads * dim, cos, sin,
                                 shape.n_kv_heads, dim);
  }
  return append_on_host(step);
}

DeviceStep::DeviceStep(const Step& step)
    : shape(step.shape),
      n_tokens(step.n_tokens()),
      n_blocks(step.n_blocks),
      max_blocks(step.max_blocks),
      positions(step.positions),
      sequence_of_token(step.sequence_of_token),
      block_tables(step.block_tables),
      q(step.q),
      k_rows(step.k),
      v_rows(step.v),
      cos(step.cos),
      sin(step.sin),
      out(step.q.size()),
      k(step.cache->k),
      v(step.cache->v),
      k_scales(step.cache->k_scales),
      v_scales(step.cache->v_scales),
      fault(std::vector<int32_t>{0}) {}

KvLayerView DeviceStep::cache() {
  const bool scaled = shape.type == KvType::kInt8;
  return {.type = shape.type,
          .n_blocks = n_blocks,
          .n_kv_heads = shape.n_kv_heads,
          .head_dim = shape.head_dim,
          .k = k.data(),
          .v = v.data(),
          .k_scales = scaled ? k_scales.data() : nullptr,
          .v_scales = scaled ? v_scales.data() : nullptr};
}

cuda::TokenView DeviceStep::tokens() const {
  return {.n_tokens = n_tokens,
          .positions = positions.data(),
          .sequence_of_token = sequence_of_token.data(),
          .block_tables = block_tables.data(),
          .max_blocks = max_blocks};
}

cuda::AttendArgs DeviceStep::attend_args() {
  const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  return {.cache = cache(),
          .tokens = tokens(),
          .n_heads = shape.n_heads,
          .q = q.data(),
          .out = out.data(),
          .scale = static_cast<float>(scale),
          .fault = fault.data(),
          .fault_code = 7};
}

cuda::RopeAppendArgs DeviceStep::append_args() {
  return {.cache = cache(),
          .tokens = tokens(),
          .n_heads = shape.n_heads,
          .q = q.data(),
          .k = k_rows.data(),
          .v = v_rows.data(),
          .cos = cos.data(),
          .sin = sin.data(),
          .fault = fault.data(),
          .fault_code = 7};
}

cuda::Stream stream() {
  int major = 0;
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "capability");
  return {.handle = nullptr, .programmatic = major >= 9};
}

}  // namespace checks
