// Passes and ops: queued, and done when they are waited for.
#include "stand_in.h"

namespace llama2q::stand_in {
namespace {

template <class T>
void keep(std::vector<T>& to, const T* from, int64_t n) {
  if (from == nullptr) n = 0;
  to.assign(from, from + n);
}

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

void add_passes(DeviceTable& table) {
  table.begin = begin;
  table.replay = replay;
  table.record = record;
  table.end_record = end_record;
  table.finish = finish;
  table.embed = embed;
  table.qkv = qkv;
  table.attend = attend;
  table.project = project;
  table.gate_up = gate_up;
  table.down = down;
  table.output = output;
  table.select = select;
  table.copy_blocks = copy_blocks;
}

}  // namespace llama2q::stand_in
