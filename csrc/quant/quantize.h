// Round-to-nearest quantizers. The NumPy code in src/llama2q/quant is the definition; this is the
// same arithmetic (+ - * / rint and comparisons on floats, no fma), equal bit for bit.
#pragma once

#include <cstdint>

namespace llama2q {

enum class SourceType : int32_t { kF32, kF16, kBf16 };

// Weights of a checkpoint: [rows, cols], row-major.
struct WeightSource {
  SourceType type;
  const void* data;
  int64_t rows;
  int64_t cols;
};

// What a quantizer found wrong first: the element's index (row * cols + col), or -1.
struct QuantizeFault {
  int64_t non_finite = -1;
  int64_t overflow = -1;  // the group's scale does not fit f16
  bool none() const { return non_finite < 0 && overflow < 0; }
};

// Bands [begin, end). codes u8 [n_bands, K/8, 64], scales f16 [n_bands, K/G, 16], K = cols rounded
// up to whole groups; codes must come in zeroed.
QuantizeFault quantize_int4(const WeightSource& source, int64_t group_size, const int8_t* grid,
                            int64_t begin, int64_t end, uint8_t* codes, uint16_t* scales) noexcept;

// codes i8 [n_bands, K/4, 64], otherwise as quantize_int4.
QuantizeFault quantize_int8(const WeightSource& source, int64_t group_size, int64_t begin,
                            int64_t end, int8_t* codes, uint16_t* scales) noexcept;

// Rows [begin, end), row-major: codes i8 [rows, cols], scales f16 [rows, ceil(cols / G)].
QuantizeFault quantize_rows_int8(const WeightSource& source, int64_t group_size, int64_t begin,
                                 int64_t end, int8_t* codes, uint16_t* scales) noexcept;

// Bands [begin, end): values [n_bands, cols, 16] in the source's type.
QuantizeFault pack_dense(const WeightSource& source, int64_t begin, int64_t end,
                         void* values) noexcept;

}  // namespace llama2q
