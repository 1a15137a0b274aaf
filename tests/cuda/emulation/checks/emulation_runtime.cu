// The runtime: limits of launches, graphs, devices, errors.
#include <cuda_runtime.h>

#include "cuda/intrinsics.h"
#include "emulation.h"
#include "emulation/control.h"

namespace checks {

namespace {

using llama2q::cuda::check;
using llama2q::cuda::launch;
using llama2q::cuda::Stream;

__global__ void nothing() {}

template <int kStep, typename T>
__global__ void adds(T* x, const T* increment) {
  llama2q::cuda::let_next_start();
  llama2q::cuda::wait_for_previous();
  x[threadIdx.x] += *increment * kStep;
}

__global__ void never_waits(uint32_t* x) { x[threadIdx.x] = 0; }

__global__ void draws_before_waiting(uint32_t* ticket) {
  llama2q::cuda::take_ticket(ticket);
  llama2q::cuda::wait_for_previous();
}

// y: what was in x before and after the wait; writes before it if told.
__global__ void looks(uint32_t* x, uint32_t* y, bool writes) {
  y[0] = x[5];
  if (writes) x[5] = 8;
  llama2q::cuda::sync_block();
  llama2q::cuda::wait_for_previous();
  y[1] = x[5];
}

__global__ void diverges() {
  if (threadIdx.x > 0) llama2q::cuda::sync_warp();
}

struct Large {
  unsigned char bytes[4097];
};

__global__ void takes(Large) {}

cudaError_t launch_nothing(dim3 grid, dim3 block, size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, nothing);
}

Stream make_stream(bool programmatic = false) {
  Stream stream{nullptr, programmatic};
  check(cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking), "making a stream");
  return stream;
}

cudaGraphExec_t capture(const Stream& stream, void (*work)(const Stream&, uint32_t*, uint32_t*),
                        uint32_t* x, uint32_t* y) {
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal), "capturing");
  work(stream, x, y);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream.handle, &graph), "ending the capture");
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiating");
  check(cudaGraphDestroy(graph), "destroying");
  return exec;
}

}  // namespace

void check_launch_limits() {
  expect(launch_nothing(1, 1024, 0) == cudaSuccess, "1024 threads");
  expect(launch_nothing(1, dim3(8, 2, 64), 0) == cudaSuccess, "1024 threads in three dimensions");
  for (const dim3 block : {dim3(1025), dim3(0), dim3(1, 1, 65), dim3(32, 33)}) {
    expect(launch_nothing(1, block, 0) == cudaErrorInvalidConfiguration, "a block's extent");
  }
  for (const dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(0x80000000u)}) {
    expect(launch_nothing(grid, 1, 0) == cudaErrorInvalidConfiguration, "a grid's extent");
  }
  const std::string error = error_of([] { launch(Stream{}, nothing, 7, dim3(64, 17), 12); });
  expect_contains(error, "nothing");
  expect_contains(error, "grid (7, 1, 1), block (64, 17, 1), 12 bytes of shared memory");
  expect_contains(error, "invalid configuration argument (CUDA error 9)");
  expect(cudaGetLastError() == cudaSuccess, "launch() takes the error");
  static_cast<void>(error_of([] { launch(Stream{}, takes, 1, 1, 0, Large{}); }));
}

void check_shared_limits() {
  expect(launch_nothing(1, 32, 48 * 1024) == cudaSuccess, "48 KiB");
  expect(launch_nothing(1, 32, 48 * 1024 + 1) == cudaErrorInvalidValue, "more, not allowed");
  launch(Stream{}, nothing, 1, 32, 64 * 1024);
  expect(launch_nothing(1, 32, 64 * 1024) == cudaSuccess, "more, allowed before");
  expect(launch_nothing(1, 32, 64 * 1024 + 1) == cudaErrorInvalidValue, "yet more");
  cuda_emulation::machine().major = 7;
  cuda_emulation::machine().minor = 5;
  const std::string error = error_of([] { launch(Stream{}, nothing, 1, 32, 65 * 1024); });
  expect_contains(error, "66560 bytes of shared memory: invalid argument");
  cuda_emulation::machine().major = 9;
  cuda_emulation::machine().minor = 0;
  launch(Stream{}, nothing, 1, 32, 227 * 1024);
}

void check_programmatic_launches() {
  Buffer<uint32_t> x(std::vector<uint32_t>(32, 1)), y(std::vector<uint32_t>{1}), z(32);
  static_cast<void>(error_of(
      [&] { launch(Stream{nullptr, true}, adds<1, uint32_t>, 1, 32, 0, x.data(), y.data()); }));
  cuda_emulation::machine().major = 9;
  launch(Stream{nullptr, true}, adds<1, uint32_t>, 1, 32, 0, x.data(), y.data());
  expect_equal(x.read(), std::vector<uint32_t>(32, 2));
  launch(Stream{}, never_waits, 1, 32, 0, z.data());
  check(cudaDeviceSynchronize(), "waiting");
  expect_contains(error_of([&] { launch(Stream{nullptr, true}, never_waits, 1, 32, 0, z.data()); }),
                  "never_waits: no thread said wait_for_previous()");
  cuda_emulation::reset();
  Buffer<uint32_t> ticket(1);
  expect_contains(error_of([&] {
                    launch(Stream{nullptr, true}, draws_before_waiting, 1, 32, 0, ticket.data());
                  }),
                  "take_ticket before wait_for_previous");
}

void check_overlap() {
  cuda_emulation::machine().major = 9;
  const Stream stream{nullptr, true};
  Buffer<uint32_t> x(std::vector<uint32_t>(32, 1)), y(2), one(std::vector<uint32_t>{1});
  const auto add = [&](bool programmatic) {
    launch(Stream{nullptr, programmatic}, adds<1, uint32_t>, 1, 32, 0, x.data(), one.data());
  };
  const auto look = [&] {
    launch(stream, looks, 1, 32, 0, x.data(), y.data(), false);
    return y.read();
  };
  // A copy ended all: nothing can come late.
  expect_equal(look(), {1u, 1u});
  for (const bool programmatic : {false, true}) {
    x.write(std::vector<uint32_t>(32, 1));
    add(programmatic);
    expect_equal(look(), {0xffffffffu, 2u});
    // What the launch before the last one wrote may not be there either.
    add(programmatic);
    Buffer<uint32_t> z(1);
    launch(stream, adds<1, uint32_t>, 1, 1, 0, z.data(), one.data());
    expect_equal(look(), {0xffffffffu, 3u});
    add(programmatic);
    check(cudaStreamSynchronize(nullptr), "waiting");
    expect_equal(look(), {4u, 4u});
    // A launch without the attribute waits for all before it.
    add(programmatic);
    launch(Stream{}, nothing, 1, 1, 0);
    expect_equal(look(), {5u, 5u});
  }
  expect_equal(x.read(), std::vector<uint32_t>(32, 5));
  add(true);
  const std::string error =
      error_of([&] { launch(stream, looks, 1, 32, 0, x.data(), y.data(), true); });
  expect_contains(error, "::looks, block (0, 0, 0)");
  expect_contains(error, "writes before wait_for_previous()");
}

void check_graphs() {
  Buffer<uint32_t> x(std::vector<uint32_t>(32, 0)), y(std::vector<uint32_t>{5});
  const Stream stream = make_stream();
  const auto work = [](const Stream& s, uint32_t* a, uint32_t* b) {
    launch(s, adds<2, uint32_t>, 1, 32, 0, a, b);
    launch(s, adds<1, uint32_t>, 1, 1, 0, b, b);  // doubles it
    check(cudaMemsetAsync(a + 31, 0, 4, s.handle), "setting");
  };
  const cudaGraphExec_t exec = capture(stream, work, x.data(), y.data());
  expect_equal(y.read(), {5u});
  const int64_t before = cuda_emulation::launches();
  check(cudaGraphUpload(exec, stream.handle), "uploading");
  check(cudaGraphLaunch(exec, stream.handle), "replaying");
  std::vector<uint32_t> wanted(32, 10);
  wanted[31] = 0;
  expect_equal(x.read(), wanted);
  // What a kernel reads from memory is read anew.
  y.write({7});
  check(cudaGraphLaunch(exec, stream.handle), "replaying");
  for (size_t i = 0; i < 31; ++i) wanted[i] += 14;
  expect_equal(x.read(), wanted);
  expect_equal(y.read(), {14u});
  expect(cuda_emulation::launches() == before + 4, "launches are counted");
  check(cudaGraphExecDestroy(exec), "destroying");
  check(cudaStreamDestroy(stream.handle), "closing");
  // An error within a graph names its kernel.
  const Stream other = make_stream();
  const auto bad = [](const Stream& s, uint32_t*, uint32_t*) { launch(s, diverges, 1, 32, 0); };
  const cudaGraphExec_t failing = capture(other, bad, nullptr, nullptr);
  const std::string error =
      error_of([&] { check(cudaGraphLaunch(failing, other.handle), "replaying a graph"); });
  expect_contains(error, "replaying a graph: unspecified launch failure: kernel checks::");
  expect_contains(error, "::diverges, block (0, 0, 0)");
  cuda_emulation::reset();
  check(cudaGraphExecDestroy(failing), "destroying");
}

void check_forbidden_in_capture() {
  const auto refused = [](auto call) {
    const Stream stream = make_stream();
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal), "capturing");
    expect(call(stream) == cudaErrorStreamCaptureUnsupported, "the call is refused");
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream.handle, &status), "asking");
    expect(status == cudaStreamCaptureStatusInvalidated, "the capture is lost");
    cudaGraph_t graph = nullptr;
    expect(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorStreamCaptureInvalidated &&
               graph == nullptr,
           "there is no graph");
    check(cudaStreamDestroy(stream.handle), "closing");
    static_cast<void>(cudaGetLastError());
  };
  refused([](const Stream& stream) { return cudaStreamSynchronize(stream.handle); });
  refused([](const Stream&) { return cudaDeviceSynchronize(); });
  refused([](const Stream&) {
    void* memory = nullptr;
    return cudaMalloc(&memory, 4);
  });
  refused([](const Stream&) {
    uint32_t a = 0, b = 0;
    return cudaMemcpy(&a, &b, 4, cudaMemcpyHostToHost);
  });
  expect(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) ==
             cudaErrorStreamCaptureUnsupported,
         "the default stream is not captured");
}

void check_devices() {
  int n = 0;
  cuda_emulation::machine().n_devices = 0;
  expect(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0, "no device");
  expect(cudaSetDevice(0) == cudaErrorInvalidDevice, "no device 0");
  cuda_emulation::machine().n_devices = 2;
  cuda_emulation::machine().memory_bytes = 4096;
  static_cast<void>(cudaGetLastError());
  expect(cudaGetDeviceCount(&n) == cudaSuccess && n == 2, "two devices");
  const Stream first = make_stream();
  check(cudaSetDevice(1), "device 1");
  const Buffer<unsigned char> all(4096);
  expect_contains(error_of([&] { launch(first, nothing, 1, 1, 0); }), "invalid resource handle");
  check(cudaSetDevice(0), "device 0");
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking");
  expect(free_bytes == 4096, "memory is a device's own");
  launch(first, nothing, 1, 1, 0);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 1), "asking");
  expect(std::string(properties.name) == "emulated device 1", "its name");
  expect(cudaGetDeviceProperties(&properties, 2) == cudaErrorInvalidDevice, "no device 2");
}

void check_errors_stay() {
  static_cast<void>(error_of([] { launch(Stream{}, diverges, 1, 32, 0); }));
  expect_contains(error_of([] { launch(Stream{}, nothing, 1, 1, 0); }), "::diverges");
  expect(cudaDeviceSynchronize() == cudaErrorLaunchFailure, "nothing works any more");
  cuda_emulation::reset();
  launch(Stream{}, nothing, 1, 1, 0);
}

void check_names() {
  const char* name = nullptr;
  check(cudaFuncGetName(&name, reinterpret_cast<const void*>(adds<3, double>)), "the name");
  expect_contains(name, "addsILi3EdE");
  Buffer<double> x(1);
  const std::string error =
      error_of([&] { launch(Stream{}, adds<3, double>, 1, 2000, 0, x.data(), x.data()); });
  expect_contains(error, "addsILi3EdE");
  expect(std::string(cudaGetErrorName(cudaErrorNoDevice)) == "cudaErrorNoDevice", "an error");
}

void check_events() {
  cudaEvent_t start = nullptr, end = nullptr;
  check(cudaEventCreate(&start), "an event");
  check(cudaEventCreate(&end), "an event");
  float milliseconds = -1.0f;
  expect(cudaEventElapsedTime(&milliseconds, start, end) != cudaSuccess, "not recorded");
  check(cudaEventRecord(start), "recording");
  launch(Stream{}, nothing, 4, 32, 0);
  check(cudaEventRecord(end), "recording");
  check(cudaEventSynchronize(end), "waiting");
  check(cudaEventElapsedTime(&milliseconds, start, end), "the time between");
  expect(milliseconds >= 0.0f, "time goes on");
  check(cudaEventDestroy(start), "destroying");
  check(cudaEventDestroy(end), "destroying");
}

}  // namespace checks
