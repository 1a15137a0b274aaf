// Devices, their memory, weights on their way.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda/work.h"
#include "stand_in.h"

namespace llama2q::stand_in {
namespace {

int64_t total_bytes() { return number_from("LLAMA2Q_STAND_IN_BYTES", int64_t{1} << 30); }

std::map<int32_t, int64_t>& used_bytes() {
  static std::map<int32_t, int64_t> used;
  return used;
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

const char* note(const Device*) { return nullptr; }

}  // namespace

void add_memory(DeviceTable& table) {
  table.count = count;
  table.describe = describe;
  table.open = open;
  table.close = close;
  table.allocate = allocate;
  table.release = release;
  table.copy_in = copy_in;
  table.copy_out = copy_out;
  table.place_matrix = place_matrix;
  table.stream_matrix = stream_matrix;
  table.stream_bytes = stream_bytes;
  table.await_slot = await_slot;
  table.free_slot = free_slot;
  table.rows = rows;
  table.note = note;
}

}  // namespace llama2q::stand_in
