#include "model/layer_stream.h"

#include <algorithm>
#include <array>

#include "cuda/work.h"

namespace llama2q {
namespace {

// What visits together, and the slot whose op reads it.
struct Part {
  const MatrixView LayerView::* matrix;
  StreamSlot slot;
};
constexpr std::array<Part, 6> kParts{{{&LayerView::wq, StreamSlot::kQkv},
                                      {&LayerView::wk, StreamSlot::kQkv},
                                      {&LayerView::wv, StreamSlot::kQkv},
                                      {&LayerView::wo, StreamSlot::kProject},
                                      {&LayerView::w1_w3, StreamSlot::kGateUp},
                                      {&LayerView::w2, StreamSlot::kDown}}};

// Blocks that hold positions before the pass's tokens, or the tokens themselves; ascending.
struct Blocks {
  std::vector<int32_t> past, touched;
};

Blocks blocks_of(const Batch& batch) {
  Blocks blocks;
  for (int64_t t = 0; t < batch.n_tokens; ++t) {
    const int32_t sequence = batch.sequence_of_token[t];
    const int32_t* table = batch.block_tables + sequence * batch.max_blocks;
    const int64_t position = batch.positions[t];
    if (t == 0 || batch.sequence_of_token[t - 1] != sequence) {
      const int64_t n_past = (position + kBlockSize - 1) / kBlockSize;
      blocks.past.insert(blocks.past.end(), table, table + n_past);
    }
    blocks.touched.push_back(table[position / kBlockSize]);
  }
  for (std::vector<int32_t>* list : {&blocks.past, &blocks.touched}) {
    std::sort(list->begin(), list->end());
    list->erase(std::unique(list->begin(), list->end()), list->end());
  }
  return blocks;
}

int64_t norm_bytes(const Config& config) {
  return (config.dim * int64_t{sizeof(float)} + 255) / 256 * 256;
}

// Of one layer, or of the largest where they differ.
int64_t largest(const Weights& weights, const MatrixView LayerView::* matrix) {
  int64_t bytes = 0;
  for (const LayerView& layer : weights.layers) {
    bytes = std::max(bytes, cuda::matrix_bytes(layer.*matrix));
  }
  return bytes;
}

}  // namespace

LayerStream::LayerStream(const Config& config, const Weights& weights, DeviceBackend& device,
                         KvType kv_type, int64_t n_blocks, int64_t from_tokens)
    : config_(config),
      device_(device),
      from_tokens_(from_tokens),
      cache_(device, kv_type, 1, n_blocks, config.n_kv_heads, config.head_dim()) {
  int64_t total = 2 * norm_bytes(config);
  for (const Part& part : kParts) total += largest(weights, part.matrix);
  memory_ = device.allocate(total, false);
  char* at = memory_->data();
  for (char*& norm : norms_) {
    norm = at;
    at += norm_bytes(config);
  }
  for (size_t i = 0; i < kParts.size(); ++i) {
    matrices_[i] = at;
    at += largest(weights, kParts[i].matrix);
  }
}

void LayerStream::place(const LayerView& layer, StreamSlot slot, LayerView& view) {
  const auto norm = [&](const float* from, char* to) {
    device_.stream(from, config_.dim * int64_t{sizeof(float)}, to, slot);
    return reinterpret_cast<const float*>(to);
  };
  if (slot == StreamSlot::kQkv) view.attention_norm = norm(layer.attention_norm, norms_[0]);
  if (slot == StreamSlot::kGateUp) view.ffn_norm = norm(layer.ffn_norm, norms_[1]);
  const auto put = [&](MatrixView& to, const MatrixView& from, size_t i) {
    if (kParts[i].slot == slot) to = device_.stream(from, matrices_[i], slot);
  };
  put(view.wq, layer.wq, 0);
  put(view.wk, layer.wk, 1);
  put(view.wv, layer.wv, 2);
  put(view.wo, layer.wo, 3);
  put(view.w1_w3, layer.w1_w3, 4);
  put(view.w2, layer.w2, 5);
  device_.await(slot);
}

template <class Function>
void LayerStream::for_each_run(const KvLayerView& host, const std::vector<int32_t>& blocks,
                               Function f) {
  const KvLayerView& there = cache_.layer(0);
  const int64_t rows = host.n_kv_heads * kBlockSize;
  const int64_t codes = rows * host.head_dim * element_bytes(host.type);
  const auto part = [&](void* device, void* own, int64_t bytes, int64_t first, int64_t n) {
    if (own == nullptr) return;
    f(static_cast<char*>(device) + first * bytes, static_cast<char*>(own) + first * bytes,
      n * bytes);
  };
  for (size_t begin = 0, end; begin < blocks.size(); begin = end) {
    end = begin + 1;
    while (end < blocks.size() && blocks[end] == blocks[end - 1] + 1) ++end;
    const auto n = static_cast<int64_t>(end - begin);
    part(there.k, host.k, codes, blocks[begin], n);
    part(there.v, host.v, codes, blocks[begin], n);
    part(there.k_scales, host.k_scales, rows * 2, blocks[begin], n);
    part(there.v_scales, host.v_scales, rows * 2, blocks[begin], n);
  }
}

void LayerStream::bring_cache(const KvLayerView& host, const std::vector<int32_t>& blocks) {
  for_each_run(host, blocks, [&](char* device, const char* own, int64_t bytes) {
    device_.stream(own, bytes, device, StreamSlot::kCache);
  });
  device_.await(StreamSlot::kCache);
}

void LayerStream::take_cache_back(const KvLayerView& host, const std::vector<int32_t>& blocks) {
  for_each_run(host, blocks, [&](const char* device, char* own, int64_t bytes) {
    device_.copy_bytes_out(device, bytes, own);
  });
}

void LayerStream::run(Stage& host, const Pass& pass, const std::function<void()>& between_layers) {
  const Batch& batch = *pass.batch;
  const int64_t n = batch.n_tokens;
  const Blocks blocks = blocks_of(batch);
  float* x = device_.rows(Rows::kX, n * config_.dim);
  float* q = device_.rows(Rows::kQ, n * config_.dim);
  float* attended = device_.rows(Rows::kAttended, n * config_.dim);
  float* hidden = device_.rows(Rows::kHidden, n * config_.hidden_dim);
  const KvLayerView& cache = cache_.layer(0);
  device_.copy_in(host.embed(pass), n * config_.dim, x);
  device_.begin({&batch, nullptr, nullptr, 0});
  for (int64_t i = host.first(); i < host.end(); ++i) {
    host.enter_layer(i, between_layers);
    const LayerView& layer = host.layer(i);
    LayerView view = layer;  // ops know shapes from matrices beside their own
    place(layer, StreamSlot::kQkv, view);
    bring_cache(host.cache_of(i), blocks.past);
    device_.qkv(view, config_.norm_eps, batch, cache, x, q);
    device_.free(StreamSlot::kQkv);
    place(layer, StreamSlot::kProject, view);
    // Only here: what comes next is on its way while the ops so far are waited for.
    take_cache_back(host.cache_of(i), blocks.touched);
    device_.attend(view, batch, cache, q, attended);
    device_.free(StreamSlot::kCache);
    device_.project(view, n, attended, x);
    device_.free(StreamSlot::kProject);
    place(layer, StreamSlot::kGateUp, view);
    device_.gate_up(view, config_.norm_eps, n, x, hidden);
    device_.free(StreamSlot::kGateUp);
    place(layer, StreamSlot::kDown, view);
    device_.down(view, n, hidden, x);
    device_.free(StreamSlot::kDown);
    host.leave_layer(i);
  }
  const Fault fault = device_.finish();
  require_finite(fault.layer < 0, fault.layer, fault.op);
}

}  // namespace llama2q
