// Layers whose weights the host keeps, computed on a device for passes of many tokens: weights and
// cache of one after the other visit it, while the one before is computed.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/device_backend.h"
#include "model/kv_cache.h"
#include "model/stage.h"

namespace llama2q {

class LayerStream {
 public:
  // Passes of from_tokens tokens or more are taken. The device's memory for one layer, as large as
  // the largest of `weights`, and for its cache is taken here; the device outlives this object.
  LayerStream(const Config& config, const Weights& weights, DeviceBackend& device, KvType kv_type,
              int64_t n_blocks, int64_t from_tokens);

  bool takes(const Pass& pass) const { return pass.batch->n_tokens >= from_tokens_; }

  // Runs the layers of a stage of the host, with the embedding before them, and leaves the rows in
  // the device's Rows::kX. between_layers may throw. Throws NonFinite.
  void run(Stage& host, const Pass& pass, const std::function<void()>& between_layers);

 private:
  // Brings what a slot holds of a layer to its place, and says so in `view`.
  void place(const LayerView& layer, StreamSlot slot, LayerView& view);
  void bring_cache(const KvLayerView& host, const std::vector<int32_t>& blocks);
  void take_cache_back(const KvLayerView& host, const std::vector<int32_t>& blocks);
  // Calls f(bytes of the device's cache, of the host's, how many) for runs of blocks.
  template <class Function>
  void for_each_run(const KvLayerView& host, const std::vector<int32_t>& blocks, Function f);

  const Config config_;
  DeviceBackend& device_;
  const int64_t from_tokens_;
  std::unique_ptr<BackendMemory> memory_;
  char* matrices_[6]{};  // in the order of LayerView
  char* norms_[2]{};
  KvCache cache_;  // of one layer
};

}  // namespace llama2q
