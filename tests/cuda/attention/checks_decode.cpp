// attend_decode(): within float64's bounds, and a token's result is its own.
#include <numeric>

#include "checks.h"
#include "harness.h"
#include "reference.h"
#include "step.h"

namespace checks {
namespace {

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8};

int64_t context_of(const Step& step) { return step.max_blocks * kBlockSize; }

struct Scratch {
  Scratch(const Shape& shape, int64_t n_tokens, int64_t context)
      : states(static_cast<size_t>(
            cuda::decode_states(n_tokens, shape.n_heads, shape.head_dim, context))),
        tickets(std::vector<uint32_t>(
            static_cast<size_t>(cuda::decode_tickets(n_tokens, shape.n_heads)))) {}
  cuda::DecodeScratch view() { return {states.data(), tickets.data()}; }

  Buffer<float> states;
  Buffer<uint32_t> tickets;
};

std::vector<float> decode(const Step& step, int64_t context, int64_t run = 1) {
  DeviceStep device(step);
  Scratch scratch(step.shape, step.n_tokens(), context);
  cuda::attend_decode(stream(), device.attend_args(), scratch.view(), context, run);
  const std::vector<uint32_t> tickets = scratch.tickets.read();
  expect(std::accumulate(tickets.begin(), tickets.end(), 0u) == 0, "tickets are left");
  expect(device.fault.read()[0] == 0, "a fault was raised");
  return device.out.read();
}

std::vector<float> decode(const Step& step) { return decode(step, context_of(step)); }

void expect_right(const Shape& shape, const std::vector<Part>& parts, uint32_t seed) {
  Step step = make_step(shape, parts, seed);
  append_on_host(step);
  expect_close(decode(step), decode_reference(step), describe(shape));
}

// Rows of a result, [n, n_heads * head_dim].
std::vector<float> rows(const Step& step, const std::vector<float>& out, int64_t begin,
                        int64_t end) {
  const int64_t dim = step.shape.n_heads * step.shape.head_dim;
  return {out.begin() + begin * dim, out.begin() + end * dim};
}

// One token of each sequence, around the edges of warps, blocks and splits.
void test_positions(KvType type) {
  const std::vector<Part> parts = {{0, 1},   {1, 1},   {31, 1},  {32, 1},  {63, 1}, {64, 1},
                                   {127, 1}, {128, 1}, {129, 1}, {255, 1}, {300, 1}};
  uint32_t seed = 10;
  for (const int64_t head_dim : {8, 48, 64, 128}) {
    for (const int64_t group : {1, 2, 4, 8}) {
      expect_right({type, head_dim, group, 1}, parts, seed++);
    }
  }
}

}  // namespace

void check_decode_positions_f32() { test_positions(KvType::kF32); }
void check_decode_positions_f16() { test_positions(KvType::kF16); }
void check_decode_positions_int8() { test_positions(KvType::kInt8); }

// Odd head_dims, and groups that fill no kernel's heads.
void check_decode_odd_shapes() {
  const std::vector<Part> parts = {{5, 1}, {130, 1}, {191, 1}};
  uint32_t seed = 40;
  for (const KvType type : kTypes) {
    for (const int64_t head_dim : {2, 6, 96, 130, 256}) {
      for (const int64_t group : {1, 3}) {
        expect_right({type, head_dim, 2 * group, 2}, parts, seed++);
      }
    }
    for (const int64_t group : {3, 5, 12}) {
      expect_right({type, 64, 2 * group, 2}, parts, seed++);
      expect_right({type, 128, 2 * group, 2}, parts, seed++);
    }
  }
}

// Several tokens of a sequence, as in speculation, and more than a launch takes: the same bits
// however many of them a block takes together.
void check_decode_runs() {
  const std::vector<Part> few = {{125, 6}, {0, 3}, {255, 2}, {62, 4}}, many = {{120, 35}, {3, 7}};
  uint32_t seed = 80;
  for (const KvType type : kTypes) {
    for (const Shape& shape : {Shape{type, 64, 4, 2}, Shape{type, 128, 1, 1}, Shape{type, 48, 1, 1},
                               Shape{type, 64, 6, 2}, Shape{type, 8, 12, 1}}) {
      Step step = make_step(shape, shape.n_heads == 1 ? few : many, seed++);
      append_on_host(step);
      const std::vector<float> alone = decode(step);
      expect_close(alone, decode_reference(step), describe(shape));
      for (const int64_t run : {2, 3, 6, 20}) {
        expect_equal(decode(step, context_of(step), run), alone,
                     describe(shape) + ": runs of " + std::to_string(run));
      }
    }
  }
}

// Contexts for which the scratch holds few tokens at a time.
void check_decode_long_contexts() {
  const Shape shape{KvType::kF16, 8, 64, 64};
  Step step = make_step(shape, {{20, 3}, {200, 2}}, 99);
  append_on_host(step);
  const std::vector<float> expected = decode(step);
  for (const int64_t context : {40000, 70000}) {
    expect_equal(decode(step, context, 3), expected, "context " + std::to_string(context));
  }
}

// The same bits again, alone and beside others, and whatever the launch covers.
void check_decode_independence() {
  for (const KvType type : kTypes) {
    for (const int64_t head_dim : {48, 128}) {
      const Shape shape{type, head_dim, 4, 2};
      Step step = make_step(shape, {{140, 3}, {257, 1}, {40, 1}}, 90);
      append_on_host(step);
      const std::vector<float> together = decode(step);
      expect_equal(decode(step, context_of(step) + 1000), together, describe(shape) + ": context");
      expect_equal(decode(step), together, describe(shape) + ": again");
      for (int64_t t = 0; t < step.n_tokens(); ++t) {
        Step alone = step;
        const int64_t dim = shape.n_heads * shape.head_dim;
        alone.positions = {step.positions[static_cast<size_t>(t)]};
        alone.sequence_of_token = {step.sequence_of_token[static_cast<size_t>(t)]};
        alone.q = {step.q.begin() + t * dim, step.q.begin() + (t + 1) * dim};
        expect_equal(decode(alone), rows(step, together, t, t + 1),
                     describe(shape) + ": token " + std::to_string(t) + " alone");
      }
    }
  }
}

// A recorded launch reads positions and tables anew.
void check_decode_replay() {
  const Shape shape{KvType::kF16, 64, 2, 2};
  Step first = make_step(shape, {{60, 1}}, 95), second = make_step(shape, {{200, 1}}, 96);
  append_on_host(first);
  append_on_host(second);
  const int64_t context = 1024;
  DeviceStep device(second);
  Scratch scratch(shape, 1, context);
  cudaStream_t handle = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayed = nullptr;
  cuda::check(cudaStreamCreate(&handle), "stream");
  cuda::AttendArgs args = device.attend_args();
  cuda::check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), "capture");
  cuda::attend_decode({.handle = handle, .programmatic = stream().programmatic}, args,
                      scratch.view(), context, 1);
  cuda::check(cudaStreamEndCapture(handle, &graph), "end of capture");
  cuda::check(cudaGraphInstantiate(&replayed, graph, 0), "graph");
  cuda::check(cudaGraphLaunch(replayed, handle), "replay");
  expect_close(device.out.read(), decode_reference(second), "as recorded");
  // The first step has fewer blocks: its tables lie in the same array.
  std::vector<int32_t> tables = first.block_tables;
  tables.resize(second.block_tables.size(), -1);
  device.positions.write(first.positions);
  device.block_tables.write(tables);
  device.q.write(first.q);
  device.k.write(first.cache->k);
  device.v.write(first.cache->v);
  cuda::check(cudaGraphLaunch(replayed, handle), "replay");
  expect_close(device.out.read(), decode_reference(first), "replayed");
  cuda::check(cudaGraphExecDestroy(replayed), "graph");
  cuda::check(cudaGraphDestroy(graph), "graph");
  cuda::check(cudaStreamDestroy(handle), "stream");
}

}  // namespace checks
