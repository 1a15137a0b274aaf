// The ops on a device, through the table of its library.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/device_library.h"

namespace llama2q {

class DeviceBackend final : public Backend {
 public:
  // Opens the device; its work space is taken here. Throws DeviceError.
  DeviceBackend(std::shared_ptr<const DeviceLibrary> library, int index, const DeviceShape& shape);
  ~DeviceBackend() override;

  bool is_host() const override { return false; }
  std::string note() const override;
  int64_t most_rows() const override { return shape_.n_rows; }
  int64_t work_bytes() const override { return 0; }
  float* rows(Rows which, int64_t floats) override;
  void copy_in(const float* host, int64_t floats, float* rows) override;
  void copy_out(const float* rows, int64_t floats, float* host) override;
  std::unique_ptr<BackendMemory> allocate(int64_t bytes, bool in_large_blocks) override;
  void copy_blocks(const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                   const int32_t* destination, int64_t n) override;
  LayerView place(const LayerView& layer) override;
  EmbeddingView place(const EmbeddingView& table) override;
  MatrixView place(const MatrixView& matrix) override;
  const float* place(const float* norm, int64_t dim) override;

  // Weights and cache that visit the device, see csrc/cuda/table.h.
  MatrixView stream(const MatrixView& host, char* memory, StreamSlot slot);
  void stream(const void* host, int64_t bytes, char* memory, StreamSlot slot);
  void await(StreamSlot slot);
  void free(StreamSlot slot);
  // Ordinary bytes of the device, when the ops so far have been done.
  void copy_bytes_out(const char* memory, int64_t bytes, char* host);

  void begin(const Pass& pass) override;
  bool replay(uint64_t key) override;
  void record() override;
  void end_record(uint64_t key, bool keep) override;
  Fault finish() override;
  void select(int64_t n_rows, int64_t vocab_size, int64_t k, const float* logits, float* values,
              int32_t* ids) override;

  void embed(const EmbeddingView& table, const Pass& pass, float* x) override;
  bool qkv(const LayerView& layer, float eps, const Batch& batch, const KvLayerView& cache,
           const float* x, float* q) override;
  void attend(const LayerView& layer, const Batch& batch, const KvLayerView& cache, const float* q,
              float* attended) override;
  bool project(const LayerView& layer, int64_t n, const float* attended, float* x) override;
  bool gate_up(const LayerView& layer, float eps, int64_t n, const float* x,
               float* hidden) override;
  bool down(const LayerView& layer, int64_t n, const float* hidden, float* x) override;
  bool output(const float* norm, const MatrixView* matrix, int64_t dim, float eps, const Pass& pass,
              const float* x, float* y) override;

 private:
  // Calls a function of the table with the device, `arguments` and a failure to fill in.
  template <class Function, class... Arguments>
  void call(Function function, Arguments... arguments) const;
  char* take(int64_t bytes);

  std::shared_ptr<const DeviceLibrary> library_;
  const DeviceTable& table_;
  const DeviceShape shape_;
  Device* device_ = nullptr;
  std::vector<void*> weights_;
};

}  // namespace llama2q
