// wq, wk, wv with RoPE and the KV cache. What they multiply is checked elsewhere: here, what
// becomes of the products, to the bit.
#include <algorithm>
#include <cmath>
#include <memory>

#include "activations.h"
#include "base/types.h"
#include "checks.h"
#include "kernels/args.h"

namespace checks {

namespace {

using llama2q::kBlockSize;
using llama2q::KvLayerView;
using llama2q::KvType;

struct Shape {
  int64_t n_heads, n_kv_heads, head_dim;
};

// Bands of 16 rows are a head, a part of one, and of two heads.
constexpr Shape kShapes[] = {{4, 2, 16}, {2, 1, 64}, {6, 3, 20}, {2, 2, 6}};

constexpr int64_t kCols = 172, kBlocks = 5, kMaxBlocks = 2, kSequences = 2;

// A layer's weights, its input, and where its tokens stand: two sequences, one across a block's
// end.
struct Layer {
  Shape shape;
  Matrix q, k, v;
  std::shared_ptr<const PlacedMatrix> placed_q, placed_k, placed_v;
  int64_t n;
  std::vector<float> x, norm, cos, sin;
  std::vector<int32_t> positions, sequences, tables{3, 1, 0, 4};

  Layer(const Shape& s, int64_t n_tokens, Kind kind)
      : shape(s),
        q(random_matrix(kind, s.n_heads * s.head_dim, kCols, 64)),
        k(random_matrix(Kind::kLookup, s.n_kv_heads * s.head_dim, kCols, 64)),
        v(random_matrix(Kind::kInt8, s.n_kv_heads * s.head_dim, kCols, 64)),
        placed_q(std::make_shared<PlacedMatrix>(q)),
        placed_k(std::make_shared<PlacedMatrix>(k)),
        placed_v(std::make_shared<PlacedMatrix>(v)),
        n(n_tokens),
        x(static_cast<size_t>(n_tokens * kCols)),
        norm(random_norm(kCols)) {
    for (float& value : x) value = std::normal_distribution<float>(0.0f, 1.0f)(generator());
    for (int64_t t = 0; t < n; ++t) {
      const bool second = t >= n / 2;
      sequences.push_back(second ? 1 : 0);
      positions.push_back(static_cast<int32_t>(second ? 5 + t - n / 2 : 61 + t));
      for (int64_t i = 0; i < s.head_dim / 2; ++i) {
        const double angle = static_cast<double>(random_int(0, 6283)) / 1000;
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }

  int64_t cache_row(int64_t token, int64_t head) const {
    const auto t = static_cast<size_t>(token);
    const auto at = static_cast<size_t>(sequences[t] * kMaxBlocks + positions[t] / kBlockSize);
    return (tables[at] * shape.n_kv_heads + head) * kBlockSize + positions[t] % kBlockSize;
  }
  int64_t cache_rows() const { return kBlocks * shape.n_kv_heads * kBlockSize; }

  std::vector<std::vector<float>> products() {
    Call call;
    call.matrices = {placed_q.get(), placed_k.get(), placed_v.get()};
    call.x = x;
    call.n = n;
    call.norm = norm;
    return run_call(call);
  }

  void rotate(std::vector<float>& rows, int64_t heads) const {
    const int64_t half = shape.head_dim / 2;
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < heads * half; ++i) {
        float* const pair = rows.data() + 2 * (t * heads * half + i);
        const auto at = static_cast<size_t>(t * half + i % half);
        const float x0 = pair[0], x1 = pair[1];
        pair[0] = std::fmaf(x0, cos[at], -(x1 * sin[at]));
        pair[1] = std::fmaf(x0, sin[at], x1 * cos[at]);
      }
    }
  }
};

// What qkv() leaves.
struct Appended {
  bool appended = false;
  int32_t fault = 0;
  std::vector<float> q, k, v;           // y
  std::vector<uint8_t> k_rows, v_rows;  // the caches' bytes
  std::vector<uint16_t> k_scales, v_scales;
};

Appended run_qkv(const Layer& layer, KvType type, int64_t n_multiprocessors = 3) {
  const auto element = type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1;
  const auto bytes = static_cast<size_t>(layer.cache_rows() * layer.shape.head_dim * element);
  const Buffer<uint8_t> k_rows(std::vector<uint8_t>(bytes, 0xee));
  const Buffer<uint8_t> v_rows(std::vector<uint8_t>(bytes, 0xee));
  const std::vector<uint16_t> no_scales(static_cast<size_t>(layer.cache_rows()), 0xeeee);
  const Buffer<uint16_t> k_scales(no_scales), v_scales(no_scales);
  const Buffer<float> x(layer.x), norm(layer.norm), cos(layer.cos), sin(layer.sin);
  const Buffer<int32_t> positions(layer.positions), sequences(layer.sequences),
      tables(layer.tables), fault(std::vector<int32_t>{0});
  const Buffer<float> q(static_cast<size_t>(layer.n * layer.q.rows)),
      k(static_cast<size_t>(layer.n * layer.k.rows)),
      v(static_cast<size_t>(layer.n * layer.v.rows));
  const llama2q::DeviceLimits limits = limits_of(n_multiprocessors);
  const Buffer<uint8_t> work(
      static_cast<size_t>(llama2q::cuda::matmul_work_bytes(limits, layer.n, kCols, 64)));
  const Buffer<uint32_t> tickets(std::vector<uint32_t>(
      static_cast<size_t>(llama2q::cuda::matmul_tickets(limits, layer.shape.n_kv_heads))));

  llama2q::cuda::MatmulCall call{};
  call.matrices[0] = &layer.placed_q->view();
  call.matrices[1] = &layer.placed_k->view();
  call.matrices[2] = &layer.placed_v->view();
  call.n_matrices = 3;
  call.x = x.data();
  call.n_tokens = layer.n;
  call.norm = norm.data();
  call.eps = kEps;
  call.y[0] = q.data();
  call.y[1] = k.data();
  call.y[2] = v.data();
  call.work = work.data();
  call.tickets = tickets.data();
  call.fault = {fault.data(), kFaultCode};
  llama2q::cuda::AppendTo append{};
  append.cos = cos.data();
  append.sin = sin.data();
  append.cache = {type,          kBlocks,       layer.shape.n_kv_heads, layer.shape.head_dim,
                  k_rows.data(), v_rows.data(), k_scales.data(),        v_scales.data()};
  append.positions = positions.data();
  append.sequence_of_token = sequences.data();
  append.block_tables = tables.data();
  append.max_blocks = kMaxBlocks;

  Appended out;
  out.appended = llama2q::cuda::qkv(test_stream(), limits, call, append);
  llama2q::cuda::check(cudaDeviceSynchronize(), "qkv");
  for (const uint32_t ticket : tickets.read()) expect(ticket == 0, "a ticket is left over");
  out.fault = fault.read()[0];
  out.q = q.read(), out.k = k.read(), out.v = v.read();
  out.k_rows = k_rows.read(), out.v_rows = v_rows.read();
  out.k_scales = k_scales.read(), out.v_scales = v_scales.read();
  return out;
}

// The bytes of a cache that holds the rows, all else as it was.
struct Stored {
  std::vector<uint8_t> rows;
  std::vector<uint16_t> scales;
};

Stored store(const Layer& layer, KvType type, const std::vector<float>& x) {
  const int64_t head_dim = layer.shape.head_dim, heads = layer.shape.n_kv_heads;
  const int64_t element = type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1;
  Stored out;
  out.rows.assign(static_cast<size_t>(layer.cache_rows() * head_dim * element), 0xee);
  out.scales.assign(static_cast<size_t>(layer.cache_rows()), 0xeeee);
  for (int64_t t = 0; t < layer.n; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* const from = x.data() + (t * heads + h) * head_dim;
      const int64_t row = layer.cache_row(t, h);
      uint8_t* const to = out.rows.data() + row * head_dim * element;
      float amax = 0.0f;
      for (int64_t i = 0; i < head_dim; ++i) amax = std::max(amax, std::fabs(from[i]));
      const uint16_t scale = llama2q::f32_to_f16_scale(amax / 127.0f);
      const float d = llama2q::f16_to_f32(scale);
      if (type == KvType::kInt8) out.scales[static_cast<size_t>(row)] = scale;
      for (int64_t i = 0; i < head_dim; ++i) {
        const uint16_t half = llama2q::f32_to_f16(from[i]);
        const float q = scale == 0 ? 0.0f : std::nearbyint(from[i] / d);
        const auto code = static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f));
        if (type == KvType::kF32) std::memcpy(to + 4 * i, from + i, 4);
        if (type == KvType::kF16) std::memcpy(to + 2 * i, &half, 2);
        if (type == KvType::kInt8) std::memcpy(to + i, &code, 1);
      }
    }
  }
  return out;
}

void check_append(const Shape& shape, int64_t n, KvType type, Kind kind) {
  Layer layer(shape, n, kind);
  std::vector<std::vector<float>> wanted = layer.products();
  layer.rotate(wanted[0], shape.n_heads);
  layer.rotate(wanted[1], shape.n_kv_heads);
  for (const int64_t n_multiprocessors : {1, 4}) {
    const Appended got = run_qkv(layer, type, n_multiprocessors);
    expect(got.appended && got.fault == 0, "not appended");
    const std::string what =
        "head_dim " + std::to_string(shape.head_dim) + ", " + std::to_string(n) + " tokens: ";
    expect_same(got.q.data(), wanted[0].data(), n * layer.q.rows, what + "q");
    const Stored k = store(layer, type, wanted[1]), v = store(layer, type, wanted[2]);
    expect(got.k_rows == k.rows, what + "rows of K");
    expect(got.v_rows == v.rows, what + "rows of V");
    expect(got.k_scales == k.scales && got.v_scales == v.scales, what + "scales");
  }
}

}  // namespace

void check_append_floats() {
  for (const Shape& shape : kShapes) {
    for (const int64_t n : {1, 6, 13, 20}) {
      check_append(shape, n, KvType::kF16, Kind::kLookup);
      check_append(shape, n, KvType::kF32, Kind::kUniform);
    }
  }
}

void check_append_int8() {
  for (const Shape& shape : kShapes) {
    for (const int64_t n : {1, 6, 13, 20}) check_append(shape, n, KvType::kInt8, Kind::kInt8);
  }
}

// A token's row of the cache is the same in a step of one and of many.
void check_append_steps_agree() {
  const Layer many({4, 2, 16}, 12, Kind::kLookup);
  const Appended together = run_qkv(many, KvType::kInt8);
  for (int64_t t = 0; t < many.n; ++t) {
    Layer one = many;
    const auto at = static_cast<size_t>(t);
    const auto slice = [&](auto& values, int64_t width) {
      std::vector<typename std::decay_t<decltype(values)>::value_type> part(
          values.begin() + t * width, values.begin() + (t + 1) * width);
      values = part;
    };
    slice(one.x, kCols);
    slice(one.cos, one.shape.head_dim / 2);
    slice(one.sin, one.shape.head_dim / 2);
    one.positions = {many.positions[at]};
    one.sequences = {many.sequences[at]};
    one.n = 1;
    const Appended alone = run_qkv(one, KvType::kInt8);
    expect_same(alone.q.data(), together.q.data() + t * many.q.rows, many.q.rows, "q");
    for (int64_t h = 0; h < one.shape.n_kv_heads; ++h) {
      const int64_t row = one.cache_row(0, h) * one.shape.head_dim;
      const auto length = static_cast<size_t>(one.shape.head_dim);
      expect(std::memcmp(&alone.k_rows[static_cast<size_t>(row)],
                         &together.k_rows[static_cast<size_t>(row)], length) == 0 &&
                 std::memcmp(&alone.v_rows[static_cast<size_t>(row)],
                             &together.v_rows[static_cast<size_t>(row)], length) == 0,
             "rows of token " + std::to_string(t));
    }
  }
}

// A value that the cache cannot hold.
void check_append_faults() {
  for (const KvType type : {KvType::kF16, KvType::kInt8}) {
    Layer layer({2, 1, 16}, 3, Kind::kLookup);
    for (float& w : layer.norm) w *= type == KvType::kF16 ? 1e7f : 1e9f;
    expect(run_qkv(layer, KvType::kF32).fault == 0, "an f32 cache holds it");
    expect(run_qkv(layer, type).fault == kFaultCode, "no fault of an overflow");
  }
}

// Many tokens: q, k and v come back as multiplied, the cache untouched.
void check_append_left_over() {
  Layer layer({2, 1, 16}, 40, Kind::kLookup);
  for (int64_t t = 0; t < layer.n; ++t) {
    layer.positions[static_cast<size_t>(t)] = static_cast<int32_t>(t);
    layer.sequences[static_cast<size_t>(t)] = 0;
  }
  const std::vector<std::vector<float>> wanted = layer.products();
  const Appended got = run_qkv(layer, KvType::kF16);
  expect(!got.appended, "appended");
  expect_same(got.q.data(), wanted[0].data(), layer.n * layer.q.rows, "q");
  expect_same(got.k.data(), wanted[1].data(), layer.n * layer.k.rows, "k");
  expect_same(got.v.data(), wanted[2].data(), layer.n * layer.v.rows, "v");
  expect(std::all_of(got.k_rows.begin(), got.k_rows.end(), [](uint8_t b) { return b == 0xee; }),
         "the cache was written");
}

}  // namespace checks
