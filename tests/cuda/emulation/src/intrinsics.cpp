// Instructions, as the PTX ISA describes them: "Warp-level matrix instructions", "Integer
// arithmetic instructions: dp4a", "Data movement and conversion instructions: prmt".
#include "cuda/intrinsics.h"

#include <bit>
#include <cstring>

namespace llama2q::cuda {

namespace {

using cuda_emulation::kWarp;
using cuda_emulation::WarpOperation;

constexpr int kRows = 16, kColumns = 8;

int32_t byte_of(uint32_t word, int index, bool is_signed) {
  const auto byte = static_cast<uint8_t>(word >> (8 * index));
  return is_signed ? static_cast<int8_t>(byte) : byte;
}

int32_t dot_of(uint32_t a, uint32_t b, bool a_signed, int32_t acc) {
  auto sum = static_cast<uint32_t>(acc);  // wraps, as the instruction does
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<uint32_t>(byte_of(a, i, a_signed) * byte_of(b, i, true));
  }
  return static_cast<int32_t>(sum);
}

template <typename A, typename B, typename C>
struct Product {
  const A* a;
  const B* b;
  C* c;
};

// "Matrix Fragments for mma.m16n8k32": where element i of a thread's fragment lies.
struct Int8Layout {
  static constexpr int kDepth = 32, kElementsA = 16, kElementsB = 8, kPerRegister = 4;
  static int row_a(int group, int i) {
    return (0 <= i && i < 4) || (8 <= i && i < 12) ? group : group + 8;
  }
  static int column_a(int thread, int i) { return thread * 4 + (i & 3) + (i < 8 ? 0 : 16); }
  static int row_b(int thread, int i) { return thread * 4 + (i & 3) + (i < 4 ? 0 : 16); }
};

// "Matrix Fragments for mma.m16n8k16 with floating point type".
struct HalfLayout {
  static constexpr int kDepth = 16, kElementsA = 8, kElementsB = 4, kPerRegister = 2;
  static int row_a(int group, int i) {
    return (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
  }
  static int column_a(int thread, int i) { return thread * 2 + (i & 1) + (i < 4 ? 0 : 8); }
  static int row_b(int thread, int i) { return thread * 2 + (i & 1) + (i < 2 ? 0 : 8); }
};

// c += a b. Value reads element i of a register; Sum is what products are added up in.
template <typename Layout, typename Sum, typename A, typename B, typename C, typename ValueA,
          typename ValueB, typename Finish>
void multiply(void* const* operands, ValueA value_a, ValueB value_b, Finish finish) {
  using Operands = Product<A, B, C>;
  Sum a[kRows][Layout::kDepth], b[Layout::kDepth][kColumns];
  constexpr int kPer = Layout::kPerRegister;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& own = *static_cast<const Operands*>(operands[lane]);
    const int group = lane >> 2, thread = lane % 4;
    for (int i = 0; i < Layout::kElementsA; ++i) {
      a[Layout::row_a(group, i)][Layout::column_a(thread, i)] =
          value_a(own.a->r[i / kPer], i % kPer);
    }
    for (int i = 0; i < Layout::kElementsB; ++i) {
      b[Layout::row_b(thread, i)][group] = value_b(own.b->r[i / kPer], i % kPer);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& c = *static_cast<const Operands*>(operands[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = (lane % 4) * 2 + (i & 1);
      Sum sum{};
      for (int k = 0; k < Layout::kDepth; ++k) sum += a[row][k] * b[k][column];
      c.r[i] = finish(sum, c.r[i]);
    }
  }
}

template <bool kSignedA>
void multiply_int8(void* const* operands) {
  multiply<Int8Layout, int32_t, Int8A, Int8B, IntC>(
      operands, [](uint32_t word, int i) { return byte_of(word, i, kSignedA); },
      [](uint32_t word, int i) { return byte_of(word, i, true); },
      [](int32_t sum, int32_t acc) {
        return static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(acc));
      });
}

void multiply_f16(void* const* operands) {
  const auto half = [](uint32_t word, int i) -> double {
    return i == 0 ? low_half(word) : high_half(word);
  };
  multiply<HalfLayout, double, HalfA, HalfB, FloatC>(
      operands, half, half,
      [](double sum, float acc) { return static_cast<float>(sum + static_cast<double>(acc)); });
}

constexpr WarpOperation kMmaUs8{"mma_us8", multiply_int8<false>};
constexpr WarpOperation kMmaSs8{"mma_ss8", multiply_int8<true>};
constexpr WarpOperation kMmaF16{"mma_f16", multiply_f16};

struct MatrixRows {
  const unsigned char* row;  // of 16 bytes, where the lane points
  uint32_t* r;
};

// "Warp-level matrix load instruction: ldmatrix": lanes 8 i to 8 i + 7 point at matrix i's rows; a
// thread receives the two elements of row lane / 4 from column 2 (lane % 4) on, or of column
// lane / 4 from row 2 (lane % 4) on.
template <bool kTransposed>
void load_matrices(void* const* operands) {
  const auto element = [&](int matrix, int row, int column) {
    uint16_t value;
    const auto& own = *static_cast<const MatrixRows*>(operands[8 * matrix + row]);
    std::memcpy(&value, own.row + 2 * column, sizeof value);
    return static_cast<uint32_t>(value);
  };
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int line = lane / 4, first = 2 * (lane % 4);
      const uint32_t low =
          kTransposed ? element(matrix, first, line) : element(matrix, line, first);
      const uint32_t high =
          kTransposed ? element(matrix, first + 1, line) : element(matrix, line, first + 1);
      static_cast<const MatrixRows*>(operands[lane])->r[matrix] = low | high << 16;
    }
  }
}

constexpr WarpOperation kLoadMatrix{"load_matrix_x4", load_matrices<false>};
constexpr WarpOperation kLoadMatrixTrans{"load_matrix_x4_trans", load_matrices<true>};

void load(const WarpOperation& operation, uint32_t* r, const void* row, const Place& place) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    cuda_emulation::fail(std::string(operation.name) + " of a misaligned row", place);
  }
  if (!cuda_emulation::is_shared(row, 16)) {
    cuda_emulation::fail(std::string(operation.name) + " of a row outside shared memory", place);
  }
  MatrixRows operand{static_cast<const unsigned char*>(row), r};
  cuda_emulation::rendezvous(operation, &operand, place);
}

}  // namespace

uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15u;
    const auto byte = static_cast<uint8_t>(bytes >> (8 * (nibble & 7u)));
    const uint8_t sign = byte & 0x80 ? 0xff : 0;
    result |= static_cast<uint32_t>(nibble & 8u ? sign : byte) << (8 * i);
  }
  return result;
}

int32_t dot4(uint32_t a, uint32_t b, int32_t acc) { return dot_of(a, b, true, acc); }

int32_t dot4_us(uint32_t a, uint32_t b, int32_t acc) { return dot_of(a, b, false, acc); }

void mma_us8(IntC& c, const Int8A& a, const Int8B& b, const Place& place) {
  Product<Int8A, Int8B, IntC> operand{&a, &b, &c};
  cuda_emulation::rendezvous(kMmaUs8, &operand, place);
}

void mma_ss8(IntC& c, const Int8A& a, const Int8B& b, const Place& place) {
  Product<Int8A, Int8B, IntC> operand{&a, &b, &c};
  cuda_emulation::rendezvous(kMmaSs8, &operand, place);
}

void mma_f16(FloatC& c, const HalfA& a, const HalfB& b, const Place& place) {
  Product<HalfA, HalfB, FloatC> operand{&a, &b, &c};
  cuda_emulation::rendezvous(kMmaF16, &operand, place);
}

// IEEE 754 binary16: 5 bits of exponent with bias 15, 10 of fraction. In float64 every step is
// exact but the one rounding. NaN becomes cvt's one NaN.
uint16_t float_to_half(float x) {
  if (std::isnan(x)) return 0x7fff;
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const double magnitude = std::fabs(static_cast<double>(x));
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent = -14;
  if (magnitude >= 0x1p-14) exponent = std::ilogb(magnitude);
  // Fractions of 2^-10 of the exponent's power, hidden bit included; a carry raises the exponent.
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (steps + (exponent + 14) * 1024));
}

float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return half & 0x8000 ? -magnitude : magnitude;
}

void load_matrix_x4(uint32_t (&r)[4], const void* shared_row, const Place& place) {
  load(kLoadMatrix, r, shared_row, place);
}

void load_matrix_x4_trans(uint32_t (&r)[4], const void* shared_row, const Place& place) {
  load(kLoadMatrixTrans, r, shared_row, place);
}

uint4 load_streamed(const uint4* address, const Place& place) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    cuda_emulation::fail("load_streamed from a misaligned address", place);
  }
  return *address;
}

}  // namespace llama2q::cuda
