// Rows of activations: RMSNorm and quantization to int8, or the norm alone.
//
// A block of 256 threads takes 2048 columns of a token, a thread an octet: grid (chunks of columns,
// tokens). With a norm every block sums the squares of its whole row. 32 bytes of shared memory.
#include "cuda/intrinsics.h"
#include "cuda/math.h"
#include "cuda/prepare.h"
#include "cuda/quantize.h"

namespace llama2q::cuda {
namespace {

constexpr int kChunk = kRowThreads * kOctet;
constexpr size_t kScratchBytes = kRowWarps * sizeof(float);

struct RowArgs {
  const float* x;     // f32 [n_tokens, cols]
  const float* norm;  // f32 [cols], or null
  float eps;
  int32_t n_tokens;
  int32_t cols;
  Activations out;
  float* y;  // f32 [n_tokens, cols]: of rms_norm()
  FaultSite fault;
};

// The thread's octet of the token, normed.
__device__ void load_row_octet(const RowArgs& args, int token, int column, float (&v)[kOctet]) {
  const float* row = args.x + int64_t{token} * args.cols;
  const bool aligned = args.cols % 4 == 0;
  load_octet(row, column, args.cols, aligned, v);
  if (args.norm == nullptr) return;
  auto* const scratch = reinterpret_cast<float*>(dynamic_shared());
  const float r = inverse_rms(row, args.cols, aligned, args.eps, scratch);
  float weight[kOctet];
  load_octet(args.norm, column, args.cols, aligned, weight);
  normalize(v, weight, r);
}

template <int kGroup>
__global__ void __launch_bounds__(kRowThreads) quantize_kernel(RowArgs args) {
  let_next_start();
  wait_for_previous();
  const int token = static_cast<int>(blockIdx.y);
  const int column = (static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x)) * kOctet;
  float v[kOctet] = {};
  if (token < args.n_tokens) load_row_octet(args, token, column, v);
  const QuantizedOctet octet = quantize_octet<kGroup>(v);
  if (!octet.finite) raise_fault(args.fault.fault, args.fault.code);
  const Activations& out = args.out;
  const int unit = column / UnitOf<kGroup>::kColumns, of_unit = column % UnitOf<kGroup>::kColumns;
  if (unit >= out.n_units) return;
  const int tile = token / out.width, of_tile = token % out.width;
  const RecordLayout at = record_layout(kGroup, out.width);
  unsigned char* const record = out.records + (int64_t{tile} * out.n_units + unit) * at.bytes;
  unsigned char* const codes =
      record + (of_unit / kStepColumns * out.width + of_tile) * kStepColumns;
  *reinterpret_cast<uint2*>(codes + octet_byte(of_unit % kStepColumns / kOctet)) = octet.codes;
  if (column % kGroup != 0) return;
  const int group = of_unit / kGroup;
  reinterpret_cast<float*>(record + at.scales)[group * out.width + of_tile] = octet.scale;
  auto* const starts = reinterpret_cast<int32_t*>(record + at.starts) +
                       (group * ((out.width + 1) / 2) + of_tile / 2) * 4 + of_tile % 2;
  starts[0] = octet.start;
  starts[2] = octet.start;
  if (out.width == 1) starts[1] = starts[3] = octet.start;
}

// With y, writes the row; in any case reports what is not finite.
__global__ void __launch_bounds__(kRowThreads) row_kernel(RowArgs args) {
  let_next_start();
  wait_for_previous();
  const int token = static_cast<int>(blockIdx.y);
  const int column = (static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x)) * kOctet;
  float v[kOctet];
  load_row_octet(args, token, column, v);
  bool finite = true;
  for (int i = 0; i < kOctet; ++i) {
    finite = finite && magnitude_bits(v[i]) < kInfinityBits;
    if (args.y != nullptr && column + i < args.cols) {
      args.y[int64_t{token} * args.cols + column + i] = v[i];
    }
  }
  if (!finite) raise_fault(args.fault.fault, args.fault.code);
}

dim3 row_grid(int64_t columns, int64_t n_tokens) {
  return dim3(static_cast<unsigned>((columns + kChunk - 1) / kChunk),
              static_cast<unsigned>(n_tokens));
}

RowArgs row_args(const float* x, int64_t n_tokens, int64_t cols, const float* norm, float eps,
                 FaultSite fault) {
  RowArgs args{};
  args.x = x;
  args.norm = norm;
  args.eps = eps;
  args.n_tokens = static_cast<int32_t>(n_tokens);
  args.cols = static_cast<int32_t>(cols);
  args.fault = fault;
  return args;
}

}  // namespace

Activations place_activations(int64_t n_tokens, int64_t width, int64_t cols, int64_t group_size,
                              void* memory) {
  Activations out{};
  out.records = static_cast<unsigned char*>(memory);
  out.width = static_cast<int32_t>(width);
  out.n_tiles = static_cast<int32_t>((n_tokens + width - 1) / width);
  out.n_units = static_cast<int32_t>(units_of(cols, group_size));
  return out;
}

void quantize_rows(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
                   int64_t group_size, const float* norm, float eps, const Activations& out,
                   FaultSite fault) {
  RowArgs args = row_args(x, n_tokens, cols, norm, eps, fault);
  args.out = out;
  const auto kernel = group_size == 32   ? quantize_kernel<32>
                      : group_size == 64 ? quantize_kernel<64>
                                         : quantize_kernel<128>;
  launch(stream, kernel,
         row_grid(out.n_units * unit_columns(group_size), int64_t{out.n_tiles} * out.width),
         dim3(kRowThreads), kScratchBytes, args);
}

void rms_norm(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
              const float* norm, float eps, float* y, FaultSite fault) {
  RowArgs args = row_args(x, n_tokens, cols, norm, eps, fault);
  args.y = y;
  launch(stream, row_kernel, row_grid(cols, n_tokens), dim3(kRowThreads), kScratchBytes, args);
}

void check_rows(const Stream& stream, const float* x, int64_t n_tokens, int64_t cols,
                FaultSite fault) {
  launch(stream, row_kernel, row_grid(cols, n_tokens), dim3(kRowThreads), kScratchBytes,
         row_args(x, n_tokens, cols, nullptr, 0.0f, fault));
}

}  // namespace llama2q::cuda
