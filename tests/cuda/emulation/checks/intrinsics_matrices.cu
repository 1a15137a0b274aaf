// Tensor core products and loads against plain matrix products.
#include <cuda_runtime.h>

#include <cmath>

#include "base/types.h"
#include "cuda/intrinsics.h"
#include "cuda/launch.h"
#include "harness.h"
#include "intrinsics.h"

namespace checks {

namespace {

using llama2q::cuda::FloatC;
using llama2q::cuda::HalfA;
using llama2q::cuda::HalfB;
using llama2q::cuda::Int8A;
using llama2q::cuda::Int8B;
using llama2q::cuda::IntC;
using llama2q::cuda::launch;
using llama2q::cuda::Stream;

constexpr size_t kRows = 16, kColumns = 8;

// Fragments: [lane, register].
__global__ void multiply_us8(const uint32_t* a, const uint32_t* b, int32_t* c) {
  const unsigned l = threadIdx.x;
  const Int8A own_a{{a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}};
  const Int8B own_b{{b[2 * l], b[2 * l + 1]}};
  IntC own_c{{c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]}};
  llama2q::cuda::mma_us8(own_c, own_a, own_b);
  for (int i = 0; i < 4; ++i) c[4 * l + i] = own_c.r[i];
}

__global__ void multiply_ss8(const uint32_t* a, const uint32_t* b, int32_t* c) {
  const unsigned l = threadIdx.x;
  const Int8A own_a{{a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}};
  const Int8B own_b{{b[2 * l], b[2 * l + 1]}};
  IntC own_c{{c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]}};
  llama2q::cuda::mma_ss8(own_c, own_a, own_b);
  for (int i = 0; i < 4; ++i) c[4 * l + i] = own_c.r[i];
}

__global__ void multiply_f16(const uint32_t* a, const uint32_t* b, float* c) {
  const unsigned l = threadIdx.x;
  const HalfA own_a{{a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}};
  const HalfB own_b{{b[2 * l], b[2 * l + 1]}};
  FloatC own_c{{c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]}};
  llama2q::cuda::mma_f16(own_c, own_a, own_b);
  for (int i = 0; i < 4; ++i) c[4 * l + i] = own_c.r[i];
}

// x: 32 rows of 16 bytes; lane l points at row order[l].
template <bool kTransposed>
__global__ void load(const uint4* x, const int32_t* order, uint32_t* y) {
  __shared__ uint4 rows[32];
  const unsigned l = threadIdx.x;
  rows[l] = x[l];
  llama2q::cuda::sync_block();
  uint32_t r[4];
  if constexpr (kTransposed) {
    llama2q::cuda::load_matrix_x4_trans(r, &rows[order[l]]);
  } else {
    llama2q::cuda::load_matrix_x4(r, &rows[order[l]]);
  }
  for (int i = 0; i < 4; ++i) y[4 * l + i] = r[i];
}

// a [16, 16], b [8, 16] (of column n of the product, row n), b_rows [16, 8]: halves. c [2, 16, 8]:
// with b loaded, and with b_rows loaded and transposed.
__global__ void multiply_loaded(const uint16_t* a, const uint16_t* b, const uint16_t* b_rows,
                                float* c) {
  __shared__ __align__(16) uint16_t shared_a[16 * 16];
  __shared__ __align__(16) uint16_t shared_b[16 * 16];
  __shared__ __align__(16) uint16_t shared_b_rows[32 * 8];
  const unsigned l = threadIdx.x;
  for (unsigned i = l; i < 256; i += 32) shared_a[i] = a[i];
  for (unsigned i = l; i < 128; i += 32) shared_b[i] = b[i];
  for (unsigned i = l; i < 128; i += 32) shared_b_rows[i] = b_rows[i];
  llama2q::cuda::sync_warp();
  HalfA own_a;
  llama2q::cuda::load_matrix_x4(own_a.r, &shared_a[(l % 16) * 16 + l / 16 * 8]);
  for (int way = 0; way < 2; ++way) {
    uint32_t r[4];
    if (way == 0) {
      // Matrices 0 and 1: columns 0-7 and 8-15 of b; the others are not needed.
      llama2q::cuda::load_matrix_x4(r, &shared_b[l % 8 * 16 + l / 8 % 2 * 8]);
    } else {
      llama2q::cuda::load_matrix_x4_trans(r, &shared_b_rows[l % 16 * 8]);
    }
    const HalfB own_b{{r[0], r[1]}};
    FloatC own_c{};
    llama2q::cuda::mma_f16(own_c, own_a, own_b);
    for (unsigned i = 0; i < 4; ++i) {
      c[way * 128 + (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = own_c.r[i];
    }
  }
}

// Element (row, column) of a matrix is that of lane `lane`, register `reg`, place `item` there.
struct Location {
  size_t lane, reg, item;
};

// Where the PTX ISA's figures of the fragments put an element: a register holds `per` elements that
// follow each other along k, four lanes a row, and a further register what is 4 * per beyond.
Location location_a(size_t row, size_t k, size_t per) {
  return {row % 8 * 4 + k / per % 4, row / 8 + k / (4 * per) * 2, k % per};
}

Location location_b(size_t k, size_t column, size_t per) {
  return {column * 4 + k / per % 4, k / (4 * per), k % per};
}

Location location_c(size_t row, size_t column) {
  return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2, 0};
}

template <typename MakeA, typename MakeB>
void check_int8(bool a_signed, MakeA make_a, MakeB make_b) {
  constexpr size_t depth = 32;
  std::vector<uint32_t> a(128), b(64);
  std::vector<int32_t> c(128), wanted(128);
  int value_a[kRows][depth], value_b[depth][kColumns];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t k = 0; k < depth; ++k) {
      value_a[row][k] = make_a(row, k);
      const Location at = location_a(row, k, 4);
      a[4 * at.lane + at.reg] |= static_cast<uint32_t>(value_a[row][k] & 0xff) << (8 * at.item);
    }
  }
  for (size_t k = 0; k < depth; ++k) {
    for (size_t column = 0; column < kColumns; ++column) {
      value_b[k][column] = make_b(k, column);
      const Location at = location_b(k, column, 4);
      b[2 * at.lane + at.reg] |= static_cast<uint32_t>(value_b[k][column] & 0xff) << (8 * at.item);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      const Location at = location_c(row, column);
      // Among them kernels' start, 1.5 * 2^23 as bits.
      const int32_t start = row % 2 == 0 ? 0x4B400000 : random_int(INT32_MIN, INT32_MAX);
      int64_t sum = start;
      for (size_t k = 0; k < depth; ++k) sum += int64_t{value_a[row][k]} * value_b[k][column];
      c[4 * at.lane + at.reg] = start;
      wanted[4 * at.lane + at.reg] = static_cast<int32_t>(static_cast<uint32_t>(sum));
    }
  }
  Buffer<uint32_t> device_a(a), device_b(b);
  Buffer<int32_t> device_c(c);
  launch(Stream{}, a_signed ? multiply_ss8 : multiply_us8, 1, 32, 0, device_a.data(),
         device_b.data(), device_c.data());
  expect_equal(device_c.read(), wanted);
}

void check_int8_products(bool a_signed) {
  const int low = a_signed ? -128 : 0, high = a_signed ? 127 : 255;
  const auto any_a = [&](size_t, size_t) { return random_int(low, high); };
  const auto any_b = [](size_t, size_t) { return random_int(-128, 127); };
  for (int i = 0; i < 20; ++i) check_int8(a_signed, any_a, any_b);
  check_int8(a_signed, [&](size_t, size_t) { return high; }, [](size_t, size_t) { return -128; });
  check_int8(a_signed, [&](size_t, size_t) { return low; }, [](size_t, size_t) { return -128; });
  // One column of A at a time.
  for (size_t only = 0; only < 32; ++only) {
    check_int8(
        a_signed, [&](size_t row, size_t k) { return k == only ? static_cast<int>(row) + 1 : 0; },
        any_b);
  }
}

uint16_t half_of(double value) { return llama2q::f32_to_f16(static_cast<float>(value)); }

double value_of(uint16_t half) { return static_cast<double>(llama2q::f16_to_f32(half)); }

// `make` gives the elements. The sums of a device may be cut off after each product: allowed is
// 2^-22 of the magnitudes for each of the 17 summands. Integers below 2^24 are exact anywhere.
template <typename Make>
void check_half_product(Make make, bool exact) {
  constexpr size_t depth = 16;
  std::vector<uint32_t> a(128), b(64);
  std::vector<float> c(128);
  std::vector<double> wanted(128), magnitudes(128);
  uint16_t half_a[kRows][depth], half_b[depth][kColumns];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t k = 0; k < depth; ++k) {
      half_a[row][k] = half_of(make());
      const Location at = location_a(row, k, 2);
      a[4 * at.lane + at.reg] |= static_cast<uint32_t>(half_a[row][k]) << (16 * at.item);
    }
  }
  for (size_t k = 0; k < depth; ++k) {
    for (size_t column = 0; column < kColumns; ++column) {
      half_b[k][column] = half_of(make());
      const Location at = location_b(k, column, 2);
      b[2 * at.lane + at.reg] |= static_cast<uint32_t>(half_b[k][column]) << (16 * at.item);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      const Location at = location_c(row, column);
      const size_t index = 4 * at.lane + at.reg;
      c[index] = static_cast<float>(make());
      wanted[index] = static_cast<double>(c[index]);
      magnitudes[index] = std::fabs(wanted[index]);
      for (size_t k = 0; k < depth; ++k) {
        const double product = value_of(half_a[row][k]) * value_of(half_b[k][column]);
        wanted[index] += product;
        magnitudes[index] += std::fabs(product);
      }
    }
  }
  Buffer<uint32_t> device_a(a), device_b(b);
  Buffer<float> device_c(c);
  launch(Stream{}, multiply_f16, 1, 32, 0, device_a.data(), device_b.data(), device_c.data());
  const std::vector<float> got = device_c.read();
  for (size_t i = 0; i < got.size(); ++i) {
    const double tolerance = exact ? 0.0 : 17 * 0x1p-22 * magnitudes[i];
    expect(std::fabs(static_cast<double>(got[i]) - wanted[i]) <= tolerance,
           "element " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", wanted " +
               std::to_string(wanted[i]));
  }
}

template <bool kTransposed>
void check_loads() {
  for (int round = 0; round < 10; ++round) {
    const std::vector<uint32_t> words = random_words(128);
    const auto* halves = reinterpret_cast<const uint16_t*>(words.data());
    std::vector<int32_t> order(32);
    for (int32_t& row : order) row = random_int(0, 31);
    std::vector<uint32_t> wanted(128);
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t matrix = 0; matrix < 4; ++matrix) {
        uint32_t pair[2];
        for (size_t i = 0; i < 2; ++i) {
          // Element (lane / 4, 2 (lane % 4) + i) of the matrix, or of the transposed one.
          const size_t row = kTransposed ? 2 * (lane % 4) + i : lane / 4;
          const size_t column = kTransposed ? lane / 4 : 2 * (lane % 4) + i;
          pair[i] = halves[static_cast<size_t>(order[8 * matrix + row]) * 8 + column];
        }
        wanted[4 * lane + matrix] = pair[0] | pair[1] << 16;
      }
    }
    std::vector<uint4> rows(32);
    std::memcpy(rows.data(), words.data(), 512);
    Buffer<uint4> x(rows);
    Buffer<int32_t> device_order(order);
    Buffer<uint32_t> y(128);
    launch(Stream{}, load<kTransposed>, 1, 32, 0, x.data(), device_order.data(), y.data());
    expect_equal(y.read(), wanted);
  }
}

}  // namespace

void check_mma_us8() { check_int8_products(false); }

void check_mma_ss8() { check_int8_products(true); }

void check_mma_f16() {
  for (int i = 0; i < 20; ++i) {
    check_half_product([] { return random_int(-100, 100); }, true);
  }
}

void check_mma_f16_rounds() {
  for (int i = 0; i < 50; ++i) {
    check_half_product([] { return random_int(-30000, 30000) * std::ldexp(1, random_int(-30, 0)); },
                       false);
  }
}

void check_load_matrix() { check_loads<false>(); }

void check_load_matrix_trans() { check_loads<true>(); }

void check_loaded_product() {
  std::vector<uint16_t> a(256), b(128), b_rows(128);
  for (uint16_t& half : a) half = half_of(random_int(-50, 50));
  std::vector<float> wanted(256);
  for (size_t n = 0; n < 8; ++n) {
    for (size_t k = 0; k < 16; ++k) {
      b[16 * n + k] = b_rows[8 * k + n] = half_of(random_int(-50, 50));
      for (size_t row = 0; row < 16; ++row) {
        const double product = value_of(a[16 * row + k]) * value_of(b[16 * n + k]);
        wanted[8 * row + n] += static_cast<float>(product);
      }
    }
  }
  for (size_t i = 0; i < 128; ++i) wanted[128 + i] = wanted[i];
  Buffer<uint16_t> device_a(a), device_b(b), device_b_rows(b_rows);
  Buffer<float> c(256);
  launch(Stream{}, multiply_loaded, 1, 32, 0, device_a.data(), device_b.data(),
         device_b_rows.data(), c.data());
  expect_equal(c.read(), wanted);
}

}  // namespace checks
