// Matrix of dense weights times any number of tokens: every weight as a float, acc = fma(w, x,
// acc).
//
// Block: 8 warps, one band (a pair for kSwiglu), 1 or 4 tokens; warp w sums slice w of the columns.
// Grid: (tiles of tokens, sets of bands). A lane loads 16 bytes, that is 4 or 8 rows of a column,
// and sums every n-th column of its slice; then a tree over the lanes of a row, then the slices in
// ascending order: the same for any number of tokens. Shared memory: the sums of a band, twice.
#include "cuda/dense.h"
#include "cuda/intrinsics.h"
#include "cuda/math.h"

namespace llama2q::cuda {
namespace {

constexpr int kSlices = 8, kThreads = kSlices * kLanes;
constexpr int kRows = static_cast<int>(kBandRows);
constexpr int kSliceColumns = 16;  // slices are multiples of this

struct F32 {
  using Element = float;
  __device__ static float widen(uint32_t word, int) { return __uint_as_float(word); }
};

struct F16 {
  using Element = uint16_t;
  __device__ static float widen(uint32_t word, int i) {
    return i == 0 ? low_half(word) : high_half(word);
  }
};

struct Bf16 {
  using Element = uint16_t;
  __device__ static float widen(uint32_t word, int i) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// The sums of a warp's slice of a band: f32 [kTokens, 16 rows].
template <class Type, int kTokens>
__device__ __forceinline__ void sum_slice(const DenseArgs& args, int band, int first_token,
                                          float* sums) {
  constexpr int kWords = 4, kOfWord = 4 / static_cast<int>(sizeof(typename Type::Element));
  constexpr int kLaneRows = kWords * kOfWord;
  constexpr int kRowLanes = kRows / kLaneRows;  // lanes side by side in a column
  constexpr int kColumns = kLanes / kRowLanes;  // that a warp loads at a time
  const int slice = static_cast<int>(threadIdx.x) / kLanes;
  const int n_units = (args.cols + kSliceColumns - 1) / kSliceColumns;
  const int end = min(n_units * (slice + 1) / kSlices * kSliceColumns, args.cols);
  const auto* const weights =
      static_cast<const uint4*>(args.weights) + int64_t{band} * args.cols * kRowLanes;
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = args.x + int64_t{min(first_token + t, args.n_tokens - 1)} * args.cols;
  }
  float acc[kTokens][kLaneRows] = {};
  const int first = n_units * slice / kSlices * kSliceColumns;
  for (int column = first + lane() / kRowLanes; column < end; column += kColumns) {
    const uint4 words = load_streamed(weights + column * kRowLanes + lane() % kRowLanes);
    const uint32_t word[kWords] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float value = x[t][column];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        acc[t][r] = fmaf(Type::widen(word[r / kOfWord], r % kOfWord), value, acc[t][r]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      for (int mask = kLanes / 2; mask >= kRowLanes; mask /= 2) {
        acc[t][r] += shuffle_xor(acc[t][r], mask);
      }
      if (lane() < kRowLanes) sums[t * kRows + lane() * kLaneRows + r] = acc[t][r];
    }
  }
}

template <class Type, int kTokens>
__global__ void __launch_bounds__(kThreads) dense_kernel(DenseArgs args) {
  constexpr int kOutputs = kTokens * kRows;
  let_next_start();
  wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes;
  const int first_token = static_cast<int>(blockIdx.x) * kTokens;
  const int set = static_cast<int>(blockIdx.y);
  const int set_bands = args.epilogue == Epilogue::kSwiglu ? 2 : 1;
  auto* const all_sums = reinterpret_cast<float*>(dynamic_shared());
  float first = 0.0f, value = 0.0f;
  for (int band = 0; band < set_bands; ++band) {
    float* const sums = all_sums + band * kSlices * kOutputs;
    sum_slice<Type, kTokens>(args, set * set_bands + band, first_token, sums + warp * kOutputs);
    sync_block();
    first = value;
    if (thread < kOutputs) {
      value = sums[thread];
      for (int s = 1; s < kSlices; ++s) value += sums[s * kOutputs + thread];
    }
  }
  const int token = first_token + thread / kRows, row = set * kRows + thread % kRows;
  if (thread >= kOutputs || token >= args.n_tokens || row >= args.y_rows) return;
  float* const y = args.y + int64_t{token} * args.y_rows + row;
  if (args.epilogue == Epilogue::kAdd) value = *y + value;
  if (args.epilogue == Epilogue::kSwiglu) value = swiglu(first, value);
  *y = value;
}

template <class Type>
void start(const Stream& stream, const DenseArgs& args) {
  const int tokens = args.n_tokens == 1 ? 1 : 4;
  const dim3 grid(static_cast<unsigned>((args.n_tokens + tokens - 1) / tokens),
                  static_cast<unsigned>(args.n_sets));
  const size_t bytes = size_t{2} * kSlices * kRows * sizeof(float) * static_cast<size_t>(tokens);
  const auto kernel = tokens == 1 ? dense_kernel<Type, 1> : dense_kernel<Type, 4>;
  launch(stream, kernel, grid, dim3(kThreads), bytes, args);
}

}  // namespace

void dense(const Stream& stream, const DenseArgs& args) {
  if (args.kind == MatrixKind::kF32) return start<F32>(stream, args);
  if (args.kind == MatrixKind::kF16) return start<F16>(stream, args);
  start<Bf16>(stream, args);
}

}  // namespace llama2q::cuda
