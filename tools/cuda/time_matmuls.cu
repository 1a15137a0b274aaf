#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/matmul.h"
#include "shapes.h"

namespace bench {
namespace {

using namespace llama2q;
using cuda::check;
using cuda::MatmulCall;
using cuda::Stream;

constexpr int64_t kGroupSize = 64;
constexpr float kEps = 1e-5f;
constexpr int64_t kContext = 4096;

enum class Weights { kInt4, kUniform, kInt8 };

const char* name_of(Weights weights) {
  return weights == Weights::kInt4      ? "int4"
         : weights == Weights::kUniform ? "int4 uniform"
                                        : "int8";
}

MatrixView matrix_of(Weights weights, int64_t rows, int64_t cols) {
  // The values published for IQ4_NL.
  constexpr int8_t kNonuniform[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
  MatrixView view{};
  view.kind = weights == Weights::kInt8 ? MatrixKind::kInt8 : MatrixKind::kInt4;
  view.rows = rows;
  view.cols = cols;
  view.n_bands = (rows + kBandRows - 1) / kBandRows;
  view.group_size = kGroupSize;
  view.n_groups = (cols + kGroupSize - 1) / kGroupSize;
  for (int code = 0; code < 16; ++code) {
    view.grid[code] =
        weights == Weights::kUniform ? static_cast<int8_t>(code - 8) : kNonuniform[code];
  }
  return view;
}

// Matrices that read one activation, and what is done with their products.
struct Op {
  const char* name;
  Weights weights;
  std::array<int64_t, cuda::kMostMatrices> rows;  // 0: no more
  int64_t cols;
  bool has_norm;
  Epilogue epilogue;
  int64_t outputs;  // of a token, of all matrices
};

std::vector<Op> ops_of(const Shape& s) {
  const int64_t pairs = 2 * kBandRows * ((s.hidden_dim + kBandRows - 1) / kBandRows);
  std::vector<Op> ops = {
      {"qkv",
       Weights::kInt4,
       {s.dim, s.kv_dim(), s.kv_dim()},
       s.dim,
       true,
       Epilogue::kStore,
       s.dim + 2 * s.kv_dim()},
      {"wo", Weights::kInt4, {s.dim}, s.dim, false, Epilogue::kAdd, s.dim},
      {"w1w3", Weights::kInt4, {pairs}, s.dim, true, Epilogue::kSwiglu, s.hidden_dim},
      {"w2", Weights::kInt4, {s.dim}, s.hidden_dim, false, Epilogue::kAdd, s.dim},
      {"output", Weights::kInt8, {s.vocab_size}, s.dim, true, Epilogue::kStore, s.vocab_size},
  };
  for (const Weights weights : {Weights::kUniform, Weights::kInt8}) {
    Op other = ops[2];
    other.weights = weights;
    ops.push_back(other);
  }
  return ops;
}

// Several copies of an op's matrices on the device.
struct Placed {
  Placed(const Op& op, const Settings& settings) {
    std::vector<MatrixView> views;
    for (const int64_t rows : op.rows) {
      if (rows != 0) views.push_back(matrix_of(op.weights, rows, op.cols));
    }
    for (const MatrixView& view : views) bytes += cuda::matrix_bytes(view);
    const int n = rotations(settings, bytes);
    const std::vector<unsigned char> codes = random_bytes();
    // f16 2^-13: the sums stay small.
    const std::vector<unsigned char> scales = repeated_word(0x08000800u);
    for (int i = 0; i < n; ++i) {
      sets.emplace_back();
      for (const MatrixView& view : views) {
        const int64_t size = cuda::matrix_bytes(view);
        memory.emplace_back(size);
        auto* const begin = memory.back().as<unsigned char>();
        const MatrixView placed = cuda::placed_matrix(view, begin);
        const auto* const split = reinterpret_cast<const unsigned char*>(placed.scales);
        fill(begin, split - begin, codes);
        fill(begin + (split - begin), size - (split - begin), scales);
        sets.back().push_back(placed);
      }
    }
  }

  std::vector<Memory> memory;
  std::vector<std::vector<MatrixView>> sets;
  int64_t bytes = 0;  // of a set
};

// A cache of f16 for the op qkv; all tokens are of one sequence.
struct Cache {
  Cache(const Shape& s, int64_t n_tokens)
      : k(zeros(kContext * s.kv_dim() * 2)),
        v(zeros(kContext * s.kv_dim() * 2)),
        cos(random_floats(n_tokens * s.head_dim / 2)),
        sin(random_floats(n_tokens * s.head_dim / 2)),
        sequences(zeros(n_tokens * int64_t{sizeof(int32_t)})) {
    std::vector<int32_t> ascending(static_cast<size_t>(std::max(n_tokens, kContext / kBlockSize)));
    for (size_t i = 0; i < ascending.size(); ++i) ascending[i] = static_cast<int32_t>(i);
    const auto bytes = static_cast<int64_t>(ascending.size() * sizeof(int32_t));
    numbers = upload(ascending.data(), bytes);
    to = {.cos = cos.as<float>(),
          .sin = sin.as<float>(),
          .cache = {KvType::kF16, kContext / kBlockSize, s.n_kv_heads, s.head_dim, k.as(), v.as(),
                    nullptr, nullptr},
          .positions = numbers.as<int32_t>(),
          .sequence_of_token = sequences.as<int32_t>(),
          .block_tables = numbers.as<int32_t>(),
          .max_blocks = kContext / kBlockSize};
  }

  Memory k, v, cos, sin, sequences, numbers;
  cuda::AppendTo to{};
};

void time_op(const Machine& machine, const Work& work, const Op& op, const Placed& placed,
             int64_t n_tokens) {
  const DeviceLimits limits{
      .n_multiprocessors = machine.properties.multiProcessorCount,
      .shared_bytes = static_cast<int64_t>(machine.properties.sharedMemPerBlockOptin)};
  const Shape& s = *work.shape;
  const Memory x = random_floats(n_tokens * op.cols), norm = random_floats(op.cols);
  std::vector<Memory> y;
  for (const int64_t rows : op.rows) y.push_back(zeros(n_tokens * rows * int64_t{sizeof(float)}));
  const Memory matmul_work(cuda::matmul_work_bytes(limits, n_tokens, op.cols, kGroupSize));
  const Memory tickets = zeros(cuda::matmul_tickets(limits, s.n_kv_heads) * 4);
  const Memory fault = zeros(sizeof(int32_t));
  const bool is_qkv = op.rows[1] != 0;
  const Cache cache(s, is_qkv ? n_tokens : 1);
  std::vector<MatmulCall> calls;
  for (const std::vector<MatrixView>& set : placed.sets) {
    MatmulCall call{};
    for (size_t m = 0; m < set.size(); ++m) {
      call.matrices[m] = &set[m];
      call.y[m] = y[m].as<float>();
    }
    call.n_matrices = static_cast<int32_t>(set.size());
    call.x = x.as<float>();
    call.n_tokens = n_tokens;
    call.norm = op.has_norm ? norm.as<float>() : nullptr;
    call.eps = kEps;
    call.epilogue = op.epilogue;
    call.y_rows = op.epilogue == Epilogue::kSwiglu ? op.outputs : 0;
    call.work = matmul_work.as();
    call.tickets = tickets.as<uint32_t>();
    call.fault = {fault.as<int32_t>(), 1};
    calls.push_back(call);
  }
  const auto queue = [&](const Stream& stream, int i) {
    const MatmulCall& call = calls[static_cast<size_t>(i) % calls.size()];
    if (is_qkv) {
      cuda::qkv(stream, limits, call, cache.to);
    } else {
      cuda::matmul(stream, limits, call);
    }
  };
  const double n = static_cast<double>(n_tokens);
  const double outputs = static_cast<double>(op.outputs);
  const double added = op.epilogue == Epilogue::kAdd ? 2 : 1;
  const double bytes =
      static_cast<double>(placed.bytes) + 4 * n * (static_cast<double>(op.cols) + added * outputs);
  double rows = 0;
  for (const MatrixView& matrix : placed.sets[0]) rows += static_cast<double>(matrix.rows);
  const double ops = 2 * rows * static_cast<double>(op.cols) * n;
  const double guess_us = std::max(bytes / 4e6, ops / 3e8) + 2;
  const int n_buffers = static_cast<int>(calls.size());
  const Times times = time_chain(work.settings, machine.stream, n_buffers, guess_us, queue);
  Row row;
  row.text("op", op.name).text("shape", s.name).text("weights", name_of(op.weights));
  row.number("tokens", n).number("bytes", bytes).number("ops", ops);
  row.number("weight_bytes", static_cast<double>(placed.bytes)).number("buffers", n_buffers);
  row.text("limit", n_tokens > cuda::kFewTokens ? "int8 mma" : "read").times(times);
  if (machine.stream.programmatic) {
    const Stream serial{machine.stream.handle, false};
    row.times(time_chain(work.settings, serial, n_buffers, guess_us, queue), "serial_us");
  }
  int32_t found = 0;
  check(cudaMemcpy(&found, fault.as(), sizeof found, cudaMemcpyDeviceToHost), "reading the fault");
  if (found != 0) row.text("error", "a value was not finite");
  row.print();
}

}  // namespace

bool time_matmuls(const Machine& machine, const Work& work) {
  for (const Op& op : ops_of(*work.shape)) {
    if (!work.wants(op.name)) continue;
    const bool is_usable = guarded(op.name, [&] {
      const Placed placed(op, work.settings);
      std::vector<int64_t> tokens = work.few;
      tokens.insert(tokens.end(), work.many.begin(), work.many.end());
      for (const int64_t n : tokens) {
        // The output matrix multiplies few rows, whatever the step.
        if (n > cuda::kFewTokens && std::string(op.name) == "output") continue;
        if (!guarded(op.name, [&] { time_op(machine, work, op, placed, n); })) {
          throw cuda::CudaError(cudaGetLastError(), "the device is broken");
        }
      }
    });
    if (!is_usable) return false;
  }
  return true;
}

}  // namespace bench
