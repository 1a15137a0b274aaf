#include "backend/device_backend.h"

#include <utility>

#include "base/check.h"
#include "cuda/sizes.h"

namespace llama2q {
namespace {

// What an op's number in a fault means (csrc/cuda/table.h).
constexpr const char* kOpNames[] = {"embed",   "qkv",  "attend", "project",
                                    "gate_up", "down", "output", "select"};

class DeviceMemory final : public BackendMemory {
 public:
  DeviceMemory(const DeviceTable& table, Device* device, void* memory)
      : table_(table), device_(device), memory_(memory) {}
  ~DeviceMemory() override { table_.release(device_, memory_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  char* data() override { return static_cast<char*>(memory_); }

 private:
  const DeviceTable& table_;
  Device* device_;
  void* memory_;
};

constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t element_bytes(MatrixKind kind) {
  switch (kind) {
    case MatrixKind::kInt4:
    case MatrixKind::kInt8:
      return 1;
    case MatrixKind::kF32:
      return 4;
    case MatrixKind::kF16:
    case MatrixKind::kBf16:
      return 2;
  }
  return 1;
}

}  // namespace

template <class Function, class... Arguments>
void DeviceBackend::call(Function function, Arguments... arguments) const {
  DeviceFailure failure{};
  check_device(function(device_, arguments..., &failure), failure);
}

DeviceBackend::DeviceBackend(std::shared_ptr<const DeviceLibrary> library, int index,
                             const DeviceShape& shape)
    : library_(std::move(library)), table_(library_->table()), shape_(shape) {
  DeviceFailure failure{};
  check_device(table_.open(index, &shape_, &device_, &failure), failure);
}

DeviceBackend::~DeviceBackend() {
  for (void* memory : weights_) table_.release(device_, memory);
  table_.close(device_);
}

std::string DeviceBackend::note() const {
  const char* note = table_.note(device_);
  return note == nullptr ? "" : note;
}

float* DeviceBackend::rows(Rows which, int64_t) { return table_.rows(device_, which); }

void DeviceBackend::copy_in(const float* host, int64_t floats, float* rows) {
  call(table_.copy_in, static_cast<void*>(rows), static_cast<const void*>(host),
       floats * int64_t{sizeof(float)});
}

void DeviceBackend::copy_out(const float* rows, int64_t floats, float* host) {
  call(table_.copy_out, static_cast<void*>(host), static_cast<const void*>(rows),
       floats * int64_t{sizeof(float)});
}

std::unique_ptr<BackendMemory> DeviceBackend::allocate(int64_t bytes, bool) {
  void* memory = nullptr;
  call(table_.allocate, bytes, &memory);
  return std::make_unique<DeviceMemory>(table_, device_, memory);
}

void DeviceBackend::copy_blocks(const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                                const int32_t* destination, int64_t n) {
  call(table_.copy_blocks, layers, n_layers, source, destination, n);
}

// Memory that lives as long as the backend.
char* DeviceBackend::take(int64_t bytes) {
  void* memory = nullptr;
  call(table_.allocate, bytes, &memory);
  weights_.push_back(memory);
  return static_cast<char*>(memory);
}

LayerView DeviceBackend::place(const LayerView& layer) {
  const MatrixView LayerView::* const matrices[] = {&LayerView::wq,    &LayerView::wk,
                                                    &LayerView::wv,    &LayerView::wo,
                                                    &LayerView::w1_w3, &LayerView::w2};
  int64_t total = 0;
  for (const auto matrix : matrices) total += aligned(cuda::matrix_bytes(layer.*matrix));
  char* memory = take(total);
  const auto placed = [&](const MatrixView& host) {
    MatrixView view{};
    call(table_.place_matrix, &host, static_cast<void*>(memory), &view);
    memory += aligned(cuda::matrix_bytes(host));
    return view;
  };
  const int64_t dim = layer.wo.rows;
  return {.index = layer.index,
          .attention_norm = place(layer.attention_norm, dim),
          .wq = placed(layer.wq),
          .wk = placed(layer.wk),
          .wv = placed(layer.wv),
          .wo = placed(layer.wo),
          .ffn_norm = place(layer.ffn_norm, dim),
          .w1_w3 = placed(layer.w1_w3),
          .w2 = placed(layer.w2)};
}

EmbeddingView DeviceBackend::place(const EmbeddingView& table) {
  const int64_t codes = table.rows * table.cols * element_bytes(table.kind);
  const int64_t scales = table.rows * table.n_groups * int64_t{sizeof(uint16_t)};
  char* memory = take(aligned(codes) + scales);
  EmbeddingView placed = table;
  call(table_.copy_in, static_cast<void*>(memory), table.codes, codes);
  placed.codes = memory;
  if (scales == 0) return placed;
  char* end = memory + aligned(codes);
  call(table_.copy_in, static_cast<void*>(end), static_cast<const void*>(table.scales), scales);
  placed.scales = reinterpret_cast<const uint16_t*>(end);
  return placed;
}

MatrixView DeviceBackend::place(const MatrixView& matrix) {
  char* memory = take(cuda::matrix_bytes(matrix));
  MatrixView placed{};
  call(table_.place_matrix, &matrix, static_cast<void*>(memory), &placed);
  return placed;
}

const float* DeviceBackend::place(const float* norm, int64_t dim) {
  const int64_t bytes = dim * int64_t{sizeof(float)};
  char* memory = take(bytes);
  call(table_.copy_in, static_cast<void*>(memory), static_cast<const void*>(norm), bytes);
  return reinterpret_cast<const float*>(memory);
}

MatrixView DeviceBackend::stream(const MatrixView& host, char* memory, StreamSlot slot) {
  MatrixView placed{};
  call(table_.stream_matrix, &host, static_cast<void*>(memory), slot, &placed);
  return placed;
}

void DeviceBackend::stream(const void* host, int64_t bytes, char* memory, StreamSlot slot) {
  call(table_.stream_bytes, static_cast<void*>(memory), host, bytes, slot);
}

void DeviceBackend::await(StreamSlot slot) { call(table_.await_slot, slot); }

void DeviceBackend::free(StreamSlot slot) { call(table_.free_slot, slot); }

void DeviceBackend::copy_bytes_out(const char* memory, int64_t bytes, char* host) {
  call(table_.copy_out, static_cast<void*>(host), static_cast<const void*>(memory), bytes);
}

void DeviceBackend::begin(const Pass& pass) {
  const Batch& batch = *pass.batch;
  const DeviceBatch copied{.n_tokens = batch.n_tokens,
                           .n_sequences = batch.n_sequences,
                           .max_blocks = batch.max_blocks,
                           .n_rows = pass.n_rows,
                           .token_ids = pass.token_ids,
                           .positions = batch.positions,
                           .sequence_of_token = batch.sequence_of_token,
                           .block_tables = batch.block_tables,
                           .output_rows = pass.output_rows,
                           .cos = batch.cos.data(),
                           .sin = batch.sin.data()};
  call(table_.begin, &copied);
}

bool DeviceBackend::replay(uint64_t key) {
  int32_t found = 0;
  call(table_.replay, key, &found);
  return found != 0;
}

void DeviceBackend::record() { call(table_.record); }

void DeviceBackend::end_record(uint64_t key, bool keep) {
  if (keep) {
    call(table_.end_record, key, int32_t{1});
    return;
  }
  DeviceFailure ignored{};
  table_.end_record(device_, key, 0, &ignored);
}

Fault DeviceBackend::finish() {
  int64_t layer = -1;
  int32_t op = 0;
  call(table_.finish, &layer, &op);
  return {layer, kOpNames[op]};
}

void DeviceBackend::select(int64_t, int64_t, int64_t k, const float*, float* values, int32_t* ids) {
  call(table_.select, k, values, ids);
}

void DeviceBackend::embed(const EmbeddingView& table, const Pass&, float* x) {
  call(table_.embed, &table, x);
}

bool DeviceBackend::qkv(const LayerView& layer, float eps, const Batch&, const KvLayerView& cache,
                        const float* x, float* q) {
  call(table_.qkv, &layer, eps, &cache, x, q);
  return true;
}

void DeviceBackend::attend(const LayerView& layer, const Batch&, const KvLayerView& cache,
                           const float* q, float* attended) {
  call(table_.attend, &layer, &cache, q, attended);
}

bool DeviceBackend::project(const LayerView& layer, int64_t, const float* attended, float* x) {
  call(table_.project, &layer, attended, x);
  return true;
}

bool DeviceBackend::gate_up(const LayerView& layer, float eps, int64_t, const float* x,
                            float* hidden) {
  call(table_.gate_up, &layer, eps, x, hidden);
  return true;
}

bool DeviceBackend::down(const LayerView& layer, int64_t, const float* hidden, float* x) {
  call(table_.down, &layer, hidden, x);
  return true;
}

bool DeviceBackend::output(const float* norm, const MatrixView* matrix, int64_t, float eps,
                           const Pass&, const float* x, float* y) {
  call(table_.output, norm, matrix, eps, x, y);
  return true;
}

}  // namespace llama2q
