// Words: shuffles, bytes, dots of four, halves.
#include <cuda_runtime.h>

#include <cmath>

#include "base/types.h"
#include "cuda/intrinsics.h"
#include "cuda/launch.h"
#include "harness.h"
#include "intrinsics.h"

namespace checks {

namespace {

using llama2q::cuda::launch;
using llama2q::cuda::Stream;

__global__ void lanes(int32_t* y) { y[threadIdx.x] = llama2q::cuda::lane(); }

// y: by operation, then by thread.
__global__ void shuffles(const uint32_t* x, const int32_t* sources, int mask, uint32_t* y) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  const uint32_t word = x[i];
  const auto number = static_cast<int32_t>(word);
  const auto real = static_cast<float>(word & 0xffffffu);
  y[i] = llama2q::cuda::shuffle_xor(word, mask);
  y[n + i] = static_cast<uint32_t>(llama2q::cuda::shuffle_xor(number, mask));
  y[2 * n + i] = static_cast<uint32_t>(llama2q::cuda::shuffle_xor(real, mask));
  y[3 * n + i] = llama2q::cuda::shuffle(word, sources[i]);
  y[4 * n + i] = static_cast<uint32_t>(llama2q::cuda::shuffle(number, sources[i]));
  y[5 * n + i] = static_cast<uint32_t>(llama2q::cuda::shuffle(real, sources[i]));
}

__global__ void permutes(const uint32_t* x, uint32_t* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = llama2q::cuda::permute_bytes(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
}

__global__ void dots(const uint32_t* x, int32_t* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const auto acc = static_cast<int32_t>(x[3 * i + 2]);
  y[2 * i] = llama2q::cuda::dot4(x[3 * i], x[3 * i + 1], acc);
  y[2 * i + 1] = llama2q::cuda::dot4_us(x[3 * i], x[3 * i + 1], acc);
}

__global__ void widen(const uint16_t* x, uint32_t* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __float_as_uint(llama2q::cuda::half_to_float(x[i]));
}

__global__ void narrow(const uint32_t* x, uint16_t* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = llama2q::cuda::float_to_half(__uint_as_float(x[i]));
}

// y: packed, low and high half again.
__global__ void pack(const float* x, uint32_t* y) {
  const unsigned i = threadIdx.x;
  const uint32_t packed = llama2q::cuda::pack_halves(x[2 * i], x[2 * i + 1]);
  y[3 * i] = packed;
  y[3 * i + 1] = __float_as_uint(llama2q::cuda::low_half(packed));
  y[3 * i + 2] = __float_as_uint(llama2q::cuda::high_half(packed));
}

// y: sums, then products.
__global__ void calculate_halves(const uint32_t* a, const uint32_t* b, uint32_t* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = llama2q::cuda::add_halves(a[i], b[i]);
  y[n + i] = llama2q::cuda::multiply_halves(a[i], b[i]);
}

__global__ void raise_two(const float* x, float* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = llama2q::cuda::exp2_approximate(x[i]);
}

unsigned blocks_of(size_t n) { return static_cast<unsigned>((n + 255) / 256); }

}  // namespace

void check_lane() {
  Buffer<int32_t> y(96);
  launch(Stream{}, lanes, 1, 96, 0, y.data());
  std::vector<int32_t> wanted(96);
  for (int i = 0; i < 96; ++i) wanted[static_cast<size_t>(i)] = i % 32;
  expect_equal(y.read(), wanted);
}

void check_shuffles() {
  constexpr size_t n = 64;
  for (int mask = 0; mask < 32; ++mask) {
    const std::vector<uint32_t> words = random_words(n);
    std::vector<int32_t> sources(n);
    for (int32_t& s : sources) s = random_int(0, 31);
    std::vector<uint32_t> wanted(6 * n);
    for (size_t i = 0; i < n; ++i) {
      const size_t warp = i / 32 * 32;
      const uint32_t exchanged = words[i ^ static_cast<size_t>(mask)];
      const uint32_t chosen = words[warp + static_cast<size_t>(sources[i])];
      wanted[i] = wanted[n + i] = exchanged;
      wanted[2 * n + i] = exchanged & 0xffffffu;
      wanted[3 * n + i] = wanted[4 * n + i] = chosen;
      wanted[5 * n + i] = chosen & 0xffffffu;
    }
    Buffer<uint32_t> x(words), y(6 * n);
    Buffer<int32_t> from(sources);
    launch(Stream{}, shuffles, 1, static_cast<unsigned>(n), 0, x.data(), from.data(), mask,
           y.data());
    expect_equal(y.read(), wanted);
  }
}

void check_permute_bytes() {
  // Every nibble in every place, and what kernels use: selectors of 16 bits with more above.
  constexpr size_t n = 4096;
  std::vector<uint32_t> x = random_words(3 * n);
  std::vector<uint32_t> wanted(n);
  for (size_t i = 0; i < n; ++i) {
    uint8_t bytes[8];
    for (int b = 0; b < 4; ++b) {
      bytes[b] = static_cast<uint8_t>(x[3 * i] >> (8 * b));
      bytes[4 + b] = static_cast<uint8_t>(x[3 * i + 1] >> (8 * b));
    }
    for (int b = 0; b < 4; ++b) {
      const uint32_t nibble = (x[3 * i + 2] >> (4 * b)) % 16;
      uint32_t byte = bytes[nibble % 8];
      if (nibble >= 8) byte = byte >= 128 ? 255 : 0;
      wanted[i] |= byte << (8 * b);
    }
  }
  Buffer<uint32_t> from(x), y(n);
  launch(Stream{}, permutes, blocks_of(n), 256, 0, from.data(), y.data(), static_cast<unsigned>(n));
  expect_equal(y.read(), wanted);
}

void check_dots() {
  constexpr size_t n = 2048;
  std::vector<uint32_t> x = random_words(3 * n);
  // The extremes: 4 * 255 * -128, and sums that wrap.
  x[0] = x[1] = 0x80808080u;
  x[3] = 0xffffffffu;
  x[4] = 0x80808080u;
  x[5] = 0x80000000u;
  std::vector<int32_t> wanted(2 * n);
  for (size_t i = 0; i < n; ++i) {
    int64_t both_signed = 0, one_signed = 0;
    for (int b = 0; b < 4; ++b) {
      const auto byte_a = static_cast<uint8_t>(x[3 * i] >> (8 * b));
      const auto byte_b = static_cast<int8_t>(x[3 * i + 1] >> (8 * b));
      both_signed += int64_t{static_cast<int8_t>(byte_a)} * byte_b;
      one_signed += int64_t{byte_a} * byte_b;
    }
    const auto acc = static_cast<int64_t>(static_cast<int32_t>(x[3 * i + 2]));
    wanted[2 * i] = static_cast<int32_t>(static_cast<uint32_t>(both_signed + acc));
    wanted[2 * i + 1] = static_cast<int32_t>(static_cast<uint32_t>(one_signed + acc));
  }
  Buffer<uint32_t> from(x);
  Buffer<int32_t> y(2 * n);
  launch(Stream{}, dots, blocks_of(n), 256, 0, from.data(), y.data(), static_cast<unsigned>(n));
  expect_equal(y.read(), wanted);
}

void check_half_to_float() {
  constexpr size_t n = 65536;
  std::vector<uint16_t> halves(n);
  for (size_t i = 0; i < n; ++i) halves[i] = static_cast<uint16_t>(i);
  Buffer<uint16_t> from(halves);
  Buffer<uint32_t> y(n);
  launch(Stream{}, widen, blocks_of(n), 256, 0, from.data(), y.data(), static_cast<unsigned>(n));
  const std::vector<uint32_t> got = y.read();
  for (size_t i = 0; i < n; ++i) {
    const float wanted = llama2q::f16_to_f32(halves[i]);
    const bool same = std::isnan(wanted) ? std::isnan(llama2q::bits_float(got[i]))
                                         : got[i] == llama2q::float_bits(wanted);
    expect(same, "half " + std::to_string(i));
  }
}

void check_float_to_half() {
  // Every half, and the floats around each and around the middle to the next.
  std::vector<uint32_t> floats;
  for (uint32_t half = 0; half < 65536; ++half) {
    const uint32_t here = llama2q::float_bits(llama2q::f16_to_f32(static_cast<uint16_t>(half)));
    const uint32_t next = llama2q::float_bits(llama2q::f16_to_f32(static_cast<uint16_t>(half + 1)));
    const uint32_t middle = here + (next - here) / 2;
    for (const uint32_t at : {here, middle}) {
      for (uint32_t step = 0; step < 3; ++step) floats.push_back(at + step - 1);
    }
  }
  for (const float x : {65519.996f, 65520.0f, 65536.0f, 3e38f, 1e-38f, 2e-8f, 3e-8f, INFINITY}) {
    floats.push_back(llama2q::float_bits(x));
    floats.push_back(llama2q::float_bits(-x));
  }
  const size_t n = floats.size();
  Buffer<uint32_t> from(floats);
  Buffer<uint16_t> y(n);
  launch(Stream{}, narrow, blocks_of(n), 256, 0, from.data(), y.data(), static_cast<unsigned>(n));
  const std::vector<uint16_t> got = y.read();
  for (size_t i = 0; i < n; ++i) {
    const float x = llama2q::bits_float(floats[i]);
    const bool same =
        std::isnan(x) ? std::isnan(llama2q::f16_to_f32(got[i])) : got[i] == llama2q::f32_to_f16(x);
    expect(same, "float bits " + std::to_string(floats[i]));
  }
}

void check_packed_halves() {
  std::vector<float> x(128);
  for (float& value : x) value = static_cast<float>(random_int(-70000, 70000)) * 0.37f;
  std::vector<uint32_t> wanted;
  for (size_t i = 0; i < 64; ++i) {
    const uint16_t low = llama2q::f32_to_f16(x[2 * i]), high = llama2q::f32_to_f16(x[2 * i + 1]);
    wanted.push_back(low | static_cast<uint32_t>(high) << 16);
    wanted.push_back(llama2q::float_bits(llama2q::f16_to_f32(low)));
    wanted.push_back(llama2q::float_bits(llama2q::f16_to_f32(high)));
  }
  Buffer<float> from(x);
  Buffer<uint32_t> y(192);
  launch(Stream{}, pack, 1, 64, 0, from.data(), y.data());
  expect_equal(y.read(), wanted);
}

void check_half_arithmetic() {
  // In float64 both are exact (a half has 11 bits and exponents from -24 to 15); rounding that to
  // float32 first changes nothing, since 24 >= 2 * 11 + 2.
  constexpr size_t n = 4096;
  const auto random_pair = [] {
    uint32_t pair = random_words(1)[0];
    for (const uint32_t exponent : {0x7c00u, 0x7c000000u}) {
      if ((pair & exponent) == exponent) pair ^= exponent;  // finite
    }
    return pair;
  };
  std::vector<uint32_t> a(n), b(n), wanted(2 * n);
  for (size_t i = 0; i < n; ++i) {
    a[i] = random_pair();
    b[i] = i % 4 == 0 ? a[i] ^ 0x80018001u : random_pair();  // close to cancelling
    for (uint32_t shift = 0; shift < 32; shift += 16) {
      const auto half = [shift](uint32_t pair) -> double {
        return llama2q::f16_to_f32(static_cast<uint16_t>(pair >> shift));
      };
      const auto sum = static_cast<float>(half(a[i]) + half(b[i]));
      const auto product = static_cast<float>(half(a[i]) * half(b[i]));
      wanted[i] |= static_cast<uint32_t>(llama2q::f32_to_f16(sum)) << shift;
      wanted[n + i] |= static_cast<uint32_t>(llama2q::f32_to_f16(product)) << shift;
    }
  }
  Buffer<uint32_t> first(a), second(b), y(2 * n);
  launch(Stream{}, calculate_halves, blocks_of(n), 256, 0, first.data(), second.data(), y.data(),
         static_cast<unsigned>(n));
  expect_equal(y.read(), wanted);
}

void check_exp2() {
  std::vector<float> x;
  for (int i = -4 * 160; i <= 4 * 20; ++i) {
    x.push_back(static_cast<float>(i) * 0.25f + static_cast<float>(random_int(0, 999)) * 1e-4f);
  }
  for (int i = -130; i <= 20; ++i) x.push_back(static_cast<float>(i));
  const auto n = static_cast<unsigned>(x.size());
  Buffer<float> from(x), y(n);
  launch(Stream{}, raise_two, blocks_of(n), 256, 0, from.data(), y.data(), n);
  const std::vector<float> got = y.read();
  for (size_t i = 0; i < x.size(); ++i) {
    const double wanted = std::exp2(static_cast<double>(x[i]));
    const double limit = x[i] < -125.9f ? 0x1p-126 : wanted * 0x1p-22;
    expect(std::abs(got[i] - wanted) <= limit, "2^" + std::to_string(x[i]));
  }
  const std::vector<float> ends = {-INFINITY, 0.0f, -0.0f};
  Buffer<float> from_ends(ends), y_ends(ends.size());
  launch(Stream{}, raise_two, 1, 32, 0, from_ends.data(), y_ends.data(), 3u);
  expect_equal(y_ends.read(), std::vector<float>{0.0f, 1.0f, 1.0f});
}

}  // namespace checks
