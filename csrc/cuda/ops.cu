#include <cmath>
#include <vector>

#include "cuda/copy_blocks.h"
#include "cuda/embed.h"
#include "cuda/gather.h"
#include "cuda/ops.h"
#include "cuda/select.h"

namespace llama2q {
namespace {

using cuda::check;

// A matmul whose activation is not normalized before.
cuda::MatmulCall call_of(const Device& device, const MatrixView& matrix, const float* x, float* y,
                         Epilogue epilogue, cuda::FaultSite fault) {
  return {.matrices = {&matrix, nullptr, nullptr},
          .n_matrices = 1,
          .x = x,
          .n_tokens = device.n_tokens,
          .norm = nullptr,
          .eps = 0.0f,
          .epilogue = epilogue,
          .y = {y, nullptr, nullptr},
          .y_rows = matrix.rows,
          .work = device.matmul_work.as(),
          .tickets = device.matmul_tickets.as<uint32_t>(),
          .fault = fault};
}

}  // namespace

void queue_embed(Device& device, const EmbeddingView& table, float* x) {
  cuda::embed(device.stream, table, device.batch_array<int32_t>(device.layout.token_ids),
              device.n_tokens, x);
}

void queue_qkv(Device& device, const LayerView& layer, float eps, const KvLayerView& cache,
               const float* x, float* q) {
  const cuda::FaultSite fault = device.fault_at(layer.index, DeviceOp::kQkv);
  const cuda::TokenView tokens = device.tokens();
  const auto* cos = device.batch_array<float>(device.layout.cos);
  const auto* sin = device.batch_array<float>(device.layout.sin);
  auto* k = device.keys.as<float>();
  auto* v = device.values.as<float>();
  const cuda::MatmulCall call{.matrices = {&layer.wq, &layer.wk, &layer.wv},
                              .n_matrices = 3,
                              .x = x,
                              .n_tokens = device.n_tokens,
                              .norm = layer.attention_norm,
                              .eps = eps,
                              .epilogue = Epilogue::kStore,
                              .y = {q, k, v},
                              .y_rows = 0,
                              .work = device.matmul_work.as(),
                              .tickets = device.matmul_tickets.as<uint32_t>(),
                              .fault = fault};
  const cuda::AppendTo append{.cos = cos,
                              .sin = sin,
                              .cache = cache,
                              .positions = tokens.positions,
                              .sequence_of_token = tokens.sequence_of_token,
                              .block_tables = tokens.block_tables,
                              .max_blocks = tokens.max_blocks};
  if (cuda::qkv(device.stream, device.limits, call, append)) return;
  cuda::rope_append(device.stream, {.cache = cache,
                                    .tokens = tokens,
                                    .n_heads = device.shape.n_heads,
                                    .q = q,
                                    .k = k,
                                    .v = v,
                                    .cos = cos,
                                    .sin = sin,
                                    .fault = fault.fault,
                                    .fault_code = fault.code});
}

void queue_attend(Device& device, const LayerView& layer, const KvLayerView& cache, const float* q,
                  float* attended) {
  const cuda::FaultSite fault = device.fault_at(layer.index, DeviceOp::kAttend);
  const cuda::AttendArgs args{
      .cache = cache,
      .tokens = device.tokens(),
      .n_heads = device.shape.n_heads,
      .q = q,
      .out = attended,
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cache.head_dim))),
      .fault = fault.fault,
      .fault_code = fault.code};
  if (device.n_tokens > cuda::kFewTokens && cuda::has_prefill(cache.type, cache.head_dim)) {
    cuda::attend_prefill(device.stream, args,
                         device.batch_array<cuda::PrefillTile>(device.layout.tiles),
                         device.n_tiles);
    return;
  }
  const cuda::DecodeScratch scratch{device.states.as<float>(),
                                    device.decode_tickets.as<uint32_t>()};
  cuda::attend_decode(device.stream, args, scratch, device.context());
}

void queue_project(Device& device, const LayerView& layer, const float* attended, float* x) {
  cuda::matmul(device.stream, device.limits,
               call_of(device, layer.wo, attended, x, Epilogue::kAdd,
                       device.fault_at(layer.index, DeviceOp::kProject)));
}

void queue_gate_up(Device& device, const LayerView& layer, float eps, const float* x,
                   float* hidden) {
  cuda::MatmulCall call = call_of(device, layer.w1_w3, x, hidden, Epilogue::kSwiglu,
                                  device.fault_at(layer.index, DeviceOp::kGateUp));
  call.norm = layer.ffn_norm;
  call.eps = eps;
  call.y_rows = layer.w2.cols;
  cuda::matmul(device.stream, device.limits, call);
}

void queue_down(Device& device, const LayerView& layer, const float* hidden, float* x) {
  cuda::matmul(device.stream, device.limits,
               call_of(device, layer.w2, hidden, x, Epilogue::kAdd,
                       device.fault_at(layer.index, DeviceOp::kDown)));
}

void queue_output(Device& device, const float* norm, const MatrixView* matrix, float eps,
                  const float* x, float* y) {
  const cuda::FaultSite fault = device.fault_at(device.shape.n_layers, DeviceOp::kOutput);
  auto* asked = device.asked.as<float>();
  cuda::gather(device.stream, x, device.batch_array<int32_t>(device.layout.output_rows),
               device.n_rows, device.shape.dim, asked);
  if (matrix == nullptr) {
    cuda::rms_norm(device.stream, asked, device.n_rows, device.shape.dim, norm, eps, y, fault);
    return;
  }
  cuda::MatmulCall call = call_of(device, *matrix, asked, y, Epilogue::kStore, fault);
  call.n_tokens = device.n_rows;
  call.norm = norm;
  call.eps = eps;
  cuda::matmul(device.stream, device.limits, call);
}

void select_largest(Device& device, int64_t k, float* values, int32_t* ids) {
  device.use();
  const cudaStream_t stream = device.stream.handle;
  const auto count = static_cast<size_t>(device.n_rows * k);
  const cuda::FaultSite fault = device.fault_at(device.shape.n_layers, DeviceOp::kSelect);
  cuda::select(device.stream, {.logits = device.rows[static_cast<int>(Rows::kOutput)].as<float>(),
                               .n_rows = device.n_rows,
                               .vocab_size = device.shape.vocab_size,
                               .k = k,
                               .values = device.values_of.as<float>(),
                               .ids = device.ids_of.as<int32_t>(),
                               .scratch = device.select_keys.as<uint64_t>(),
                               .tickets = device.select_tickets.as<uint32_t>(),
                               .fault = fault.fault,
                               .fault_code = fault.code});
  const auto read = [&](void* to, const cuda::DeviceArray& from, size_t bytes) {
    check(cudaMemcpyAsync(to, from.as(), bytes, cudaMemcpyDeviceToHost, stream),
          "reading what was selected");
  };
  read(values, device.values_of, count * sizeof(float));
  read(ids, device.ids_of, count * sizeof(int32_t));
}

void copy_blocks(Device& device, const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                 const int32_t* destination, int64_t n) {
  if (n == 0) return;
  device.settle();
  const auto bytes = static_cast<size_t>(n) * sizeof(int32_t);
  const cuda::DeviceArray ids(2 * bytes);
  const cudaStream_t stream = device.stream.handle;
  auto* from = ids.as<int32_t>();
  check(cudaMemcpyAsync(from, source, bytes, cudaMemcpyHostToDevice, stream),
        "copying block ids to the GPU");
  check(cudaMemcpyAsync(from + n, destination, bytes, cudaMemcpyHostToDevice, stream),
        "copying block ids to the GPU");
  cuda::copy_blocks(device.stream, layers, n_layers, from, from + n, n);
  check(cudaStreamSynchronize(stream), "waiting for the GPU");
}

}  // namespace llama2q
