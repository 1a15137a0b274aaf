// Weights from the file's layout (quant/int4.h, quant/int8.h) to the device's (cuda/layout.h).
//
// One thread writes one uint4 of codes, or one word of scales. 256 threads a block, no shared
// memory.
#include <stdexcept>

#include "cuda/intrinsics.h"
#include "cuda/launch.h"
#include "cuda/layout.h"
#include "cuda/matmul.h"

namespace llama2q::cuda {
namespace {

constexpr int kThreads = 256;

struct PlaceArgs {
  const uint32_t* codes;   // the file's lines of 64 bytes, [n_bands, n_lines, 16 rows]
  const uint16_t* scales;  // f16 [n_bands, n_groups, 16]
  uint4* placed_codes;
  uint32_t* placed_scales;
  int64_t n_words;     // of codes to write: uint4
  int64_t n_scales;    // of scales to write: uint32
  int64_t n_lines;     // of a band
  int64_t n_groups;    // of the file
  int64_t band_words;  // of a band: uint4
  int64_t band_scales;
};

// Low nibbles of the bytes to nibbles 0-3, high ones to nibbles 4-7.
__device__ uint32_t by_column(uint32_t word) {
  uint32_t columns = 0;
  for (int i = 0; i < 4; ++i) {
    columns |= (word >> 8 * i & 15u) << 4 * i;
    columns |= (word >> (8 * i + 4) & 15u) << (4 * i + 16);
  }
  return columns;
}

// The word of a row and line, 0 beyond the file's columns.
__device__ uint32_t file_word(const PlaceArgs& args, int64_t band, int64_t line, int row) {
  if (line >= args.n_lines) return 0;
  return args.codes[(band * args.n_lines + line) * kBandRows + row];
}

template <Codes kCodes>
__device__ uint4 placed_words(const PlaceArgs& args, int64_t band, int64_t at) {
  const int g = static_cast<int>(at % kLanes) / 4, t = static_cast<int>(at % 4);
  const int64_t part = at / kLanes;
  if constexpr (kCodes == Codes::kInt8) {  // part: a half; line 2 t of it: columns 8 t .. 8 t + 3
    const int64_t line = part * 8 + 2 * t;
    return {file_word(args, band, line, g), file_word(args, band, line, g + 8),
            file_word(args, band, line + 1, g), file_word(args, band, line + 1, g + 8)};
  } else {  // part: a step
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t line = part * 8 + i / 2 * 4 + t;
      const uint32_t word = file_word(args, band, line, g + i % 2 * 8);
      words[i] = kCodes == Codes::kLookup ? by_column(word) : word ^ 0x88888888u;
    }
    return {words[0], words[1], words[2], words[3]};
  }
}

template <Codes kCodes>
__global__ void __launch_bounds__(kThreads) place_codes(PlaceArgs args) {
  wait_for_previous();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= args.n_words) return;
  args.placed_codes[index] =
      placed_words<kCodes>(args, index / args.band_words, index % args.band_words);
}

__global__ void __launch_bounds__(kThreads) place_scales(PlaceArgs args) {
  wait_for_previous();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= args.n_scales) return;
  const int64_t band = index / args.band_scales, at = index % args.band_scales;
  const int64_t group = at / 8;
  uint32_t word = 0;
  if (group < args.n_groups) {
    const uint16_t* scales = args.scales + (band * args.n_groups + group) * kBandRows + at % 8;
    word = scales[0] | static_cast<uint32_t>(scales[8]) << 16;
  }
  args.placed_scales[index] = word;
}

dim3 blocks_for(int64_t n) { return dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)); }

}  // namespace

MatrixView placed_matrix(const MatrixView& matrix, void* memory) {
  if (matrix.kind == MatrixKind::kInt4 && !has_code_table(matrix)) {
    throw std::invalid_argument(
        "CUDA: an int4 grid whose first 8 values are not <= 0 and last 8 >= 0");
  }
  MatrixView placed = matrix;
  placed.codes = memory;
  placed.scales = nullptr;
  if (is_quantized(matrix)) {
    placed.scales =
        reinterpret_cast<const uint16_t*>(static_cast<unsigned char*>(memory) + code_bytes(matrix));
  }
  return placed;
}

int64_t file_band_code_bytes(const MatrixView& matrix) {
  switch (matrix.kind) {
    case MatrixKind::kInt4:
      return matrix.n_groups * matrix.group_size / kInt4LineColumns * kLineBytes;
    case MatrixKind::kInt8:
      return matrix.n_groups * matrix.group_size / kInt8LineColumns * kLineBytes;
    default:
      return matrix.cols * kBandRows * (matrix.kind == MatrixKind::kF32 ? 4 : 2);
  }
}

int64_t file_band_scale_bytes(const MatrixView& matrix) {
  return matrix.n_groups * kBandRows * int64_t{sizeof(uint16_t)};
}

void place_bands(const Stream& stream, const MatrixView& placed, int64_t first, int64_t count,
                 const void* codes, const uint16_t* scales) {
  auto* const to = static_cast<unsigned char*>(const_cast<void*>(placed.codes));
  if (!is_quantized(placed)) {
    const int64_t bytes = file_band_code_bytes(placed);
    check(cudaMemcpyAsync(to + first * bytes, codes, static_cast<size_t>(count * bytes),
                          cudaMemcpyDeviceToDevice, stream.handle),
          "copying dense weights");
    return;
  }
  const int64_t n_steps = steps_of(placed.n_groups, placed.group_size);
  PlaceArgs args{};
  args.codes = static_cast<const uint32_t*>(codes);
  args.scales = scales;
  args.band_words = n_steps * step_bytes(placed.kind) / int64_t{sizeof(uint4)};
  args.band_scales = padded_groups(n_steps, placed.group_size) * 8;
  args.placed_codes = reinterpret_cast<uint4*>(to) + first * args.band_words;
  args.placed_scales =
      reinterpret_cast<uint32_t*>(const_cast<uint16_t*>(placed.scales)) + first * args.band_scales;
  args.n_words = count * args.band_words;
  args.n_scales = count * args.band_scales;
  args.n_lines = file_band_code_bytes(placed) / kLineBytes;
  args.n_groups = placed.n_groups;
  const Codes kind = codes_of(placed);
  const auto kernel = kind == Codes::kLookup    ? place_codes<Codes::kLookup>
                      : kind == Codes::kUniform ? place_codes<Codes::kUniform>
                                                : place_codes<Codes::kInt8>;
  launch(stream, kernel, blocks_for(args.n_words), dim3(kThreads), 0, args);
  launch(stream, place_scales, blocks_for(args.n_scales), dim3(kThreads), 0, args);
}

}  // namespace llama2q::cuda
