// Which kernels a call takes, and how its work space is dealt out.
#include <algorithm>
#include <array>

#include "cuda/dense.h"
#include "cuda/gemm.h"
#include "cuda/gemv.h"
#include "cuda/matmul.h"
#include "cuda/prepare.h"

namespace llama2q::cuda {
namespace {

// One token's row of more columns is quantized once, before: in every block it would cost as much
// as half of a band.
constexpr int64_t kWideRow = 8192;

const uint32_t* scale_words(const MatrixView& matrix) {
  return reinterpret_cast<const uint32_t*>(matrix.scales);
}

// A call's matrices of one sort, and their outputs.
struct Part {
  std::array<const MatrixView*, kMostMatrices> matrices{};
  std::array<float*, kMostMatrices> y{};
  std::array<Role, kMostMatrices> roles{};
  int n = 0;

  void add(const MatmulCall& call, int m, Role role) {
    matrices[static_cast<size_t>(n)] = call.matrices[m];
    y[static_cast<size_t>(n)] = call.y[m];
    roles[static_cast<size_t>(n++)] = role;
  }
};

int32_t outputs_of(const MatmulCall& call, const MatrixView& matrix) {
  return static_cast<int32_t>(call.epilogue == Epilogue::kSwiglu ? call.y_rows : matrix.rows);
}

void run_dense(const Stream& stream, const MatmulCall& call, const Part& part, float* normed) {
  const int64_t cols = part.matrices[0]->cols;
  const float* x = call.x;
  if (call.norm != nullptr) {
    rms_norm(stream, call.x, call.n_tokens, cols, call.norm, call.eps, normed, call.fault);
    x = normed;
  } else {
    check_rows(stream, call.x, call.n_tokens, cols, call.fault);
  }
  for (size_t m = 0; m < static_cast<size_t>(part.n); ++m) {
    const MatrixView& matrix = *part.matrices[m];
    DenseArgs args{};
    args.kind = matrix.kind;
    args.weights = matrix.codes;
    args.cols = static_cast<int32_t>(cols);
    const int64_t set_bands = call.epilogue == Epilogue::kSwiglu ? 2 : 1;
    args.n_sets = static_cast<int32_t>(matrix.n_bands / set_bands);
    args.x = x;
    args.n_tokens = static_cast<int32_t>(call.n_tokens);
    args.epilogue = call.epilogue;
    args.y = part.y[m];
    args.y_rows = outputs_of(call, matrix);
    dense(stream, args);
  }
}

void run_gemm(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call,
              const Part& part, const Activations& input, float* partial) {
  GemmArgs args{};
  args.n_matrices = part.n;
  for (size_t m = 0; m < static_cast<size_t>(part.n); ++m) {
    const MatrixView& matrix = *part.matrices[m];
    const Codes kind = codes_of(matrix);
    args.matrices[m] = {static_cast<const uint4*>(matrix.codes),
                        scale_words(matrix),
                        kind == Codes::kLookup ? code_table(matrix) : CodeTable{},
                        kind,
                        part.y[m],
                        outputs_of(call, matrix),
                        static_cast<int32_t>(matrix.n_bands)};
  }
  args.n_units = input.n_units;
  args.n_tokens = static_cast<int32_t>(call.n_tokens);
  args.epilogue = call.epilogue;
  args.input = input;
  args.partial = partial;
  args.tickets = call.tickets;
  gemm(stream, limits, part.matrices[0]->group_size, args);
}

// input: null for one token that the kernel quantizes itself.
void run_gemv(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call,
              const Part& part, const Activations* input, const AppendTo* append) {
  const int64_t cols = part.matrices[0]->cols, group_size = part.matrices[0]->group_size;
  GemvArgs args{};
  args.set_bands = call.epilogue == Epilogue::kSwiglu ? 2 : 1;
  int n = 0, n_segments = 0;
  for (const Codes kind : {Codes::kLookup, Codes::kUniform, Codes::kInt8}) {
    GemvSegment& segment = args.segments[n_segments];
    segment = {kind, n, 0, 0};
    for (size_t m = 0; m < static_cast<size_t>(part.n); ++m) {
      const MatrixView& matrix = *part.matrices[m];
      if (codes_of(matrix) != kind) continue;
      const auto n_sets = static_cast<int32_t>(matrix.n_bands / args.set_bands);
      args.matrices[n++] = {static_cast<const uint4*>(matrix.codes),
                            scale_words(matrix),
                            kind == Codes::kLookup ? code_table(matrix) : CodeTable{},
                            part.y[m],
                            outputs_of(call, matrix),
                            n_sets,
                            append != nullptr ? part.roles[m] : Role::kPlain};
      segment.n_sets += n_sets;
    }
    if (segment.n_sets > 0) ++n_segments;
  }
  args.n_segments = n_segments;
  args.n_units = static_cast<int32_t>(units_of(cols, group_size));
  args.n_tokens = static_cast<int32_t>(call.n_tokens);
  args.epilogue = call.epilogue;
  if (input != nullptr) {
    args.input = *input;
  } else {
    args.x = call.x;
    args.norm = call.norm;
    args.eps = call.eps;
    args.cols = static_cast<int32_t>(cols);
  }
  if (append != nullptr) args.append = *append;
  args.tickets = call.tickets;
  args.fault = call.fault;
  gemv(stream, limits, group_size, args);
}

void run(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call,
         const AppendTo* append) {
  constexpr std::array kRoles{Role::kQuery, Role::kKey, Role::kValue};
  Part quantized, unquantized;
  for (int m = 0; m < call.n_matrices; ++m) {
    Part& part = is_quantized(*call.matrices[m]) ? quantized : unquantized;
    part.add(call, m, kRoles[static_cast<size_t>(m)]);
  }
  const int64_t n = call.n_tokens, cols = call.matrices[0]->cols;
  const int64_t group_size = quantized.n > 0 ? quantized.matrices[0]->group_size : 0;
  const MatmulWork parts = matmul_work(limits, n, cols, group_size);
  auto* const work = static_cast<unsigned char*>(call.work);
  if (unquantized.n > 0) {
    run_dense(stream, call, unquantized, reinterpret_cast<float*>(work + parts.activations));
  }
  if (quantized.n == 0) return;
  const int64_t width = tile_width(limits, n, cols, group_size);
  if (width == 1 && cols <= kWideRow) {
    return run_gemv(stream, limits, call, quantized, nullptr, append);
  }
  const Activations input = place_activations(n, width, cols, group_size, work);
  quantize_rows(stream, call.x, n, cols, group_size, call.norm, call.eps, input, call.fault);
  if (n <= kFewTokens) return run_gemv(stream, limits, call, quantized, &input, append);
  auto* const partial = reinterpret_cast<float*>(work + parts.activations + parts.normed);
  run_gemm(stream, limits, call, quantized, input, partial);
}

}  // namespace

void matmul(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call) {
  run(stream, limits, call, nullptr);
}

bool qkv(const Stream& stream, const DeviceLimits& limits, const MatmulCall& call,
         const AppendTo& append) {
  bool appends = call.n_tokens <= kFewTokens;
  for (int m = 0; m < call.n_matrices; ++m) appends = appends && is_quantized(*call.matrices[m]);
  run(stream, limits, call, appends ? &append : nullptr);
  return appends;
}

}  // namespace llama2q::cuda
