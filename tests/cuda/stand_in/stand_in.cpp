// A library of device kernels that is none: the table of csrc/cuda/table.h over the CPU's kernels,
// for tests of what stands around kernels: the split of layers, hops, plans, failures. It counts
// the memory that it is asked for against a limit, and its results are the CPU's, bit for bit.
// Recordings are replayed as on a device: the arguments are kept, the batch is the current one.
//   LLAMA2Q_STAND_IN_DEVICES  how many there are (1)
//   LLAMA2Q_STAND_IN_BYTES    memory of each, free at first (1 GiB)
//   LLAMA2Q_STAND_IN_FAIL     NAME or NAME:N: the call of that name fails, from the N-th on
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/cpu_features.h"
#include "base/float_env.h"
#include "cuda/table.h"
#include "cuda/work.h"

namespace llama2q {

struct Device {
  Device(int32_t number, const DeviceShape& sizes)
      : index(number), shape(sizes), backend(*available_kernels().back(), 1) {}

  int32_t index;
  DeviceShape shape;
  CpuBackend backend;
  std::map<void*, int64_t> memory;
  std::vector<float> rows[kRows];
  std::vector<int32_t> token_ids, positions, sequence_of_token, block_tables, output_rows;
  Batch batch{};
  Pass pass{};
  int64_t faulty_layer = -1;
  DeviceOp faulty_op{};
  bool begun = false, recording = false;
  bool awaited[kStreamSlots]{};
  std::vector<std::function<void()>> queue;
  std::map<uint64_t, std::vector<std::function<void()>>> recorded;
};

namespace {

int64_t number_from(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

int64_t total_bytes() { return number_from("LLAMA2Q_STAND_IN_BYTES", int64_t{1} << 30); }

std::map<int32_t, int64_t>& used_bytes() {
  static std::map<int32_t, int64_t> used;
  return used;
}

int fail(DeviceFailure* failure, DeviceFault fault, const std::string& text) {
  failure->fault = fault;
  std::snprintf(failure->text, sizeof failure->text, "%s", text.c_str());
  return 1;
}

// Whether LLAMA2Q_STAND_IN_FAIL wants this call to fail.
bool is_to_fail(const char* name) {
  static std::map<std::string, int64_t> calls;
  const int64_t call = ++calls[name];
  const char* wanted = std::getenv("LLAMA2Q_STAND_IN_FAIL");
  if (wanted == nullptr) return false;
  const std::string text = wanted;
  const size_t colon = text.find(':');
  const int64_t from =
      colon == std::string::npos ? 1 : std::strtoll(text.c_str() + colon + 1, nullptr, 10);
  return text.substr(0, colon) == name && call >= from;
}

int refuse(const char* name, DeviceFailure* failure) {
  return fail(failure, DeviceFault::kOther, std::string(name) + ": the stand-in was told to fail");
}

int count(int32_t* n, DeviceFailure* failure) {
  if (is_to_fail("count")) return fail(failure, DeviceFault::kOldDriver, "the driver is too old");
  *n = static_cast<int32_t>(number_from("LLAMA2Q_STAND_IN_DEVICES", 1));
  return 0;
}

constexpr DeviceLimits kLimits{.n_multiprocessors = 1, .shared_bytes = 99 * 1024};

int describe(int32_t index, DeviceInfo* info, DeviceFailure* failure) {
  if (is_to_fail("describe")) return refuse("describe", failure);
  *info = {};
  std::snprintf(info->name, sizeof info->name, "stand-in %d", static_cast<int>(index));
  info->total_bytes = total_bytes();
  info->free_bytes = total_bytes() - used_bytes()[index];
  info->major = 9;
  info->n_multiprocessors = static_cast<int32_t>(kLimits.n_multiprocessors);
  info->shared_bytes = kLimits.shared_bytes;
  info->driver_version = 13000;
  info->bytes_per_second = int64_t{100'000'000'000};
  return 0;
}

// What a GPU of these limits would take.
int64_t work_bytes(const DeviceShape* shape) { return cuda::WorkSizes(*shape, kLimits).total(); }

bool take(int32_t index, int64_t bytes) {
  int64_t& used = used_bytes()[index];
  if (used + bytes > total_bytes()) return false;
  used += bytes;
  return true;
}

int out_of_memory(int64_t bytes, DeviceFailure* failure) {
  return fail(failure, DeviceFault::kOutOfMemory,
              "the device has no room for " + std::to_string(bytes) + " bytes");
}

int open(int32_t index, const DeviceShape* shape, Device** device, DeviceFailure* failure) {
  if (is_to_fail("open")) return refuse("open", failure);
  if (!take(index, work_bytes(shape))) return out_of_memory(work_bytes(shape), failure);
  auto opened = std::make_unique<Device>(index, *shape);
  const auto sized = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
  opened->rows[0] = sized(shape->n_tokens * shape->dim);
  opened->rows[1] = sized(shape->n_tokens * shape->dim);
  opened->rows[2] = sized(shape->n_tokens * shape->dim);
  opened->rows[3] = sized(shape->n_tokens * shape->hidden_dim);
  opened->rows[4] = sized(shape->n_rows * std::max(shape->vocab_size, shape->dim));
  *device = opened.release();
  return 0;
}

void close(Device* device) {
  if (device == nullptr) return;
  used_bytes()[device->index] -= work_bytes(&device->shape);
  for (const auto& [memory, bytes] : device->memory) {
    used_bytes()[device->index] -= bytes;
    std::free(memory);
  }
  delete device;
}

int allocate(Device* device, int64_t bytes, void** memory, DeviceFailure* failure) {
  if (is_to_fail("allocate")) return out_of_memory(bytes, failure);
  if (!take(device->index, bytes)) return out_of_memory(bytes, failure);
  *memory = std::aligned_alloc(256, static_cast<size_t>((bytes + 255) / 256 * 256));
  std::memset(*memory, 0, static_cast<size_t>(bytes));
  device->memory[*memory] = bytes;
  return 0;
}

void release(Device* device, void* memory) {
  const auto found = device->memory.find(memory);
  if (found == device->memory.end()) return;
  used_bytes()[device->index] -= found->second;
  device->memory.erase(found);
  std::free(memory);
}

// Does what is queued.
void flush(Device* device) {
  const FloatEnv environment;
  for (const auto& done : device->queue) done();
  device->queue.clear();
}

int copy(Device* device, const char* name, void* to, const void* from, int64_t bytes,
         DeviceFailure* failure) {
  if (is_to_fail(name)) return refuse(name, failure);
  flush(device);
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return 0;
}

int copy_in(Device* device, void* to, const void* host, int64_t bytes, DeviceFailure* failure) {
  return copy(device, "copy_in", to, host, bytes, failure);
}

int copy_out(Device* device, void* host, const void* from, int64_t bytes, DeviceFailure* failure) {
  return copy(device, "copy_out", host, from, bytes, failure);
}

int64_t file_code_bytes(const MatrixView& m) {
  const int64_t bytes = m.kind == MatrixKind::kF32 ? 4 : 2;
  switch (m.kind) {
    case MatrixKind::kInt4:
      return m.n_bands * m.n_groups * m.group_size / kInt4LineColumns * kLineBytes;
    case MatrixKind::kInt8:
      return m.n_bands * m.n_groups * m.group_size / kInt8LineColumns * kLineBytes;
    default:
      return m.n_bands * m.cols * kBandRows * bytes;
  }
}

int64_t file_scale_bytes(const MatrixView& m) { return m.n_bands * m.n_groups * kBandRows * 2; }

// What it takes on a GPU, which is never less.
MatrixView described(const MatrixView& host, void* memory) {
  MatrixView placed = host;
  char* codes = static_cast<char*>(memory);
  placed.codes = codes;
  if (host.group_size != 0) {
    placed.scales = reinterpret_cast<const uint16_t*>(codes + file_code_bytes(host));
  }
  return placed;
}

void bring(const MatrixView& host, void* memory) {
  char* codes = static_cast<char*>(memory);
  std::memcpy(codes, host.codes, static_cast<size_t>(file_code_bytes(host)));
  if (host.group_size == 0) return;
  std::memcpy(codes + file_code_bytes(host), host.scales,
              static_cast<size_t>(file_scale_bytes(host)));
}

int place_matrix(Device*, const MatrixView* host, void* memory, MatrixView* placed,
                 DeviceFailure* failure) {
  if (is_to_fail("place_matrix")) return refuse("place_matrix", failure);
  *placed = described(*host, memory);
  bring(*host, memory);
  return 0;
}

// In the queue, as on a GPU: what was there may still be needed by ops before.
int stream_matrix(Device* device, const MatrixView* host, void* memory, StreamSlot slot,
                  MatrixView* placed, DeviceFailure* failure) {
  if (is_to_fail("stream_matrix")) return refuse("stream_matrix", failure);
  device->awaited[static_cast<int>(slot)] = false;
  *placed = described(*host, memory);
  device->queue.push_back([view = *host, memory] { bring(view, memory); });
  return 0;
}

int stream_bytes(Device* device, void* to, const void* host, int64_t bytes, StreamSlot slot,
                 DeviceFailure* failure) {
  if (is_to_fail("stream_bytes")) return refuse("stream_bytes", failure);
  device->awaited[static_cast<int>(slot)] = false;
  const auto* from = static_cast<const char*>(host);
  device->queue.push_back([to, kept = std::vector<char>(from, from + bytes)] {
    std::memcpy(to, kept.data(), kept.size());
  });
  return 0;
}

int await_slot(Device* device, StreamSlot slot, DeviceFailure*) {
  device->awaited[static_cast<int>(slot)] = true;
  return 0;
}

int free_slot(Device* device, StreamSlot slot, DeviceFailure* failure) {
  if (!device->awaited[static_cast<int>(slot)]) {
    return fail(failure, DeviceFault::kOther, "a slot is freed that was not awaited");
  }
  return 0;
}

float* rows(Device* device, Rows which) { return device->rows[static_cast<int>(which)].data(); }

template <class T>
void keep(std::vector<T>& to, const T* from, int64_t n) {
  if (from == nullptr) n = 0;
  to.assign(from, from + n);
}

const char* note(const Device*) { return nullptr; }

int begin(Device* device, const DeviceBatch* from, DeviceFailure* failure) {
  if (is_to_fail("begin")) return refuse("begin", failure);
  const int64_t n = from->n_tokens, half = device->shape.head_dim / 2;
  keep(device->token_ids, from->token_ids, n);
  keep(device->positions, from->positions, n);
  keep(device->sequence_of_token, from->sequence_of_token, n);
  keep(device->block_tables, from->block_tables, from->n_sequences * from->max_blocks);
  keep(device->output_rows, from->output_rows, from->n_rows);
  keep(device->batch.cos, from->cos, n * half);
  keep(device->batch.sin, from->sin, n * half);
  device->batch.n_tokens = n;
  device->batch.positions = device->positions.data();
  device->batch.sequence_of_token = device->sequence_of_token.data();
  device->batch.block_tables = device->block_tables.data();
  device->batch.n_sequences = from->n_sequences;
  device->batch.max_blocks = from->max_blocks;
  device->pass = {&device->batch, device->token_ids.data(), device->output_rows.data(),
                  from->n_rows};
  device->faulty_layer = -1;
  device->queue.clear();
  device->begun = true;
  return 0;
}

int replay(Device* device, uint64_t key, int32_t* found, DeviceFailure*) {
  const auto recorded = device->recorded.find(key);
  *found = recorded != device->recorded.end();
  if (*found != 0) device->queue = recorded->second;
  return 0;
}

int record(Device* device, DeviceFailure* failure) {
  if (is_to_fail("record")) return refuse("record", failure);
  device->recording = true;
  return 0;
}

int end_record(Device* device, uint64_t key, int32_t is_kept, DeviceFailure*) {
  device->recording = false;
  if (is_kept != 0) {
    device->recorded[key] = device->queue;
  } else {
    device->queue.clear();
  }
  return 0;
}

int finish(Device* device, int64_t* layer, int32_t* op, DeviceFailure* failure) {
  if (is_to_fail("finish")) return refuse("finish", failure);
  flush(device);
  device->begun = false;
  *layer = device->faulty_layer;
  *op = static_cast<int32_t>(device->faulty_op);
  return 0;
}

// Queues an op; it says whether all was finite.
template <class Op>
int queue(Device* device, const char* name, int64_t layer, DeviceOp op, DeviceFailure* failure,
          Op run) {
  if (is_to_fail(name)) return refuse(name, failure);
  if (!device->begun) return fail(failure, DeviceFault::kOther, "an op outside a pass");
  device->queue.push_back([device, layer, op, run] {
    if (run() || device->faulty_layer >= 0) return;
    device->faulty_layer = layer;
    device->faulty_op = op;
  });
  return 0;
}

int embed(Device* d, const EmbeddingView* table, float* x, DeviceFailure* failure) {
  return queue(d, "embed", 0, DeviceOp::kEmbed, failure, [d, view = *table, x] {
    d->backend.embed(view, d->pass, x);
    return true;
  });
}

int qkv(Device* d, const LayerView* layer, float eps, const KvLayerView* cache, const float* x,
        float* q, DeviceFailure* failure) {
  return queue(d, "qkv", layer->index, DeviceOp::kQkv, failure,
               [d, view = *layer, eps, kv = *cache, x, q] {
                 return d->backend.qkv(view, eps, d->batch, kv, x, q);
               });
}

int attend(Device* d, const LayerView* layer, const KvLayerView* cache, const float* q,
           float* attended, DeviceFailure* failure) {
  return queue(d, "attend", layer->index, DeviceOp::kAttend, failure,
               [d, view = *layer, kv = *cache, q, attended] {
                 d->backend.attend(view, d->batch, kv, q, attended);
                 return true;
               });
}

int project(Device* d, const LayerView* layer, const float* attended, float* x,
            DeviceFailure* failure) {
  return queue(d, "project", layer->index, DeviceOp::kProject, failure,
               [d, view = *layer, attended, x] {
                 return d->backend.project(view, d->batch.n_tokens, attended, x);
               });
}

int gate_up(Device* d, const LayerView* layer, float eps, const float* x, float* hidden,
            DeviceFailure* failure) {
  return queue(d, "gate_up", layer->index, DeviceOp::kGateUp, failure,
               [d, view = *layer, eps, x, hidden] {
                 return d->backend.gate_up(view, eps, d->batch.n_tokens, x, hidden);
               });
}

int down(Device* d, const LayerView* layer, const float* hidden, float* x, DeviceFailure* failure) {
  return queue(d, "down", layer->index, DeviceOp::kDown, failure, [d, view = *layer, hidden, x] {
    return d->backend.down(view, d->batch.n_tokens, hidden, x);
  });
}

int output(Device* d, const float* norm, const MatrixView* matrix, float eps, const float* x,
           float* y, DeviceFailure* failure) {
  const MatrixView view = matrix == nullptr ? MatrixView{} : *matrix;
  return queue(d, "output", d->shape.n_layers, DeviceOp::kOutput, failure,
               [d, norm, view, has_matrix = matrix != nullptr, eps, x, y] {
                 return d->backend.output(norm, has_matrix ? &view : nullptr, d->shape.dim, eps,
                                          d->pass, x, y);
               });
}

int select(Device* d, int64_t k, float* values, int32_t* ids, DeviceFailure* failure) {
  const float* logits = d->rows[static_cast<int>(Rows::kOutput)].data();
  return queue(d, "select", d->shape.n_layers, DeviceOp::kSelect, failure,
               [d, k, values, ids, logits] {
                 d->backend.select(d->pass.n_rows, d->shape.vocab_size, k, logits, values, ids);
                 return true;
               });
}

int copy_blocks(Device* d, const KvLayerView* layers, int64_t n_layers, const int32_t* source,
                const int32_t* destination, int64_t n, DeviceFailure* failure) {
  if (is_to_fail("copy_blocks")) return refuse("copy_blocks", failure);
  d->backend.copy_blocks(layers, n_layers, source, destination, n);
  return 0;
}

}  // namespace
}  // namespace llama2q

extern "C" {
[[gnu::visibility("default")]] extern const llama2q::DeviceTable llama2q_device_table;
}

const llama2q::DeviceTable llama2q_device_table = {
    .version = llama2q::kDeviceTableVersion,
    .size = sizeof(llama2q::DeviceTable),
    .targets = "stand-in",
    .count = llama2q::count,
    .describe = llama2q::describe,
    .open = llama2q::open,
    .close = llama2q::close,
    .allocate = llama2q::allocate,
    .release = llama2q::release,
    .copy_in = llama2q::copy_in,
    .copy_out = llama2q::copy_out,
    .place_matrix = llama2q::place_matrix,
    .stream_matrix = llama2q::stream_matrix,
    .stream_bytes = llama2q::stream_bytes,
    .await_slot = llama2q::await_slot,
    .free_slot = llama2q::free_slot,
    .rows = llama2q::rows,
    .note = llama2q::note,
    .begin = llama2q::begin,
    .replay = llama2q::replay,
    .record = llama2q::record,
    .end_record = llama2q::end_record,
    .finish = llama2q::finish,
    .embed = llama2q::embed,
    .qkv = llama2q::qkv,
    .attend = llama2q::attend,
    .project = llama2q::project,
    .gate_up = llama2q::gate_up,
    .down = llama2q::down,
    .output = llama2q::output,
    .select = llama2q::select,
    .copy_blocks = llama2q::copy_blocks,
};
