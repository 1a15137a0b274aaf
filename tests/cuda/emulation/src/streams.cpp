// Streams, events, graphs, launches. A stream does at once what it is given, or records it.
#include <chrono>
#include <memory>

#include "emulation/control.h"
#include "emulation/execution.h"
#include "names.h"
#include "overlap.h"
#include "state.h"

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
  bool recorded = false, timed = true;
};

using namespace cuda_emulation;

namespace {

// Null for the default stream, which never captures.
cudaError_t find_stream(cudaStream_t handle, CUstream_st** stream) {
  *stream = nullptr;
  if (handle == nullptr) return cudaSuccess;
  const auto found = runtime().streams.find(handle);
  if (found == runtime().streams.end()) return report(cudaErrorInvalidResourceHandle);
  *stream = found->second;
  return cudaSuccess;
}

}  // namespace

cudaError_t cuda_emulation::enqueue(cudaStream_t handle, std::function<cudaError_t()> work) {
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  if (stream == nullptr || !stream->capturing) {
    const DeviceAccess access;
    return work();
  }
  if (stream->invalidated) return report(cudaErrorStreamCaptureInvalidated);
  stream->recorded.nodes.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t cuda_emulation::refuse_while_capturing() {
  for (auto& [handle, stream] : runtime().streams) {
    if (stream->capturing && stream->mode != cudaStreamCaptureModeRelaxed) {
      stream->invalidated = true;
      return report(cudaErrorStreamCaptureUnsupported);
    }
  }
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  CUDA_EMULATION_ENTER();
  if (!is_device(current_device())) return report(cudaErrorNoDevice);
  auto made = std::make_unique<CUstream_st>();
  made->device = current_device();
  *stream = made.release();
  runtime().streams[*stream] = *stream;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  CUDA_EMULATION_ENTER();
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  runtime().streams.erase(handle);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  CUDA_EMULATION_ENTER();
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  if (stream == nullptr || !stream->capturing) {
    everything_has_ended();
    return cudaSuccess;
  }
  stream->invalidated = true;
  return report(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamQuery(cudaStream_t handle) { return cudaStreamSynchronize(handle); }

cudaError_t cudaDeviceSynchronize() {
  CUDA_EMULATION_ENTER();
  everything_has_ended();
  return refuse_while_capturing();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t, unsigned) {
  CUDA_EMULATION_ENTER();
  return enqueue(handle, [] { return cudaSuccess; });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  CUDA_EMULATION_ENTER();
  *event = new CUevent_st;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  CUDA_EMULATION_ENTER();
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  CUDA_EMULATION_ENTER();
  return enqueue(handle, [event] {
    event->time = std::chrono::steady_clock::now();
    event->recorded = true;
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  CUDA_EMULATION_ENTER();
  return refuse_while_capturing();
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  CUDA_EMULATION_ENTER();
  if (!start->recorded || !end->recorded || !start->timed || !end->timed) {
    return report(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  CUDA_EMULATION_ENTER();
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  if (stream == nullptr) return report(cudaErrorStreamCaptureUnsupported);
  if (stream->capturing) return report(cudaErrorIllegalState);
  stream->capturing = true;
  stream->invalidated = false;
  stream->mode = mode;
  stream->recorded.nodes.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  CUDA_EMULATION_ENTER();
  *graph = nullptr;
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  if (stream == nullptr || !stream->capturing) return report(cudaErrorIllegalState);
  stream->capturing = false;
  if (stream->invalidated) return report(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st(std::move(stream->recorded));
  stream->recorded.nodes.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  CUDA_EMULATION_ENTER();
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(handle, &stream)) return error;
  const bool capturing = stream != nullptr && stream->capturing;
  *status = !capturing            ? cudaStreamCaptureStatusNone
            : stream->invalidated ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  CUDA_EMULATION_ENTER();
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* n_nodes) {
  CUDA_EMULATION_ENTER();
  if (nodes != nullptr) return report(cudaErrorNotSupported);
  *n_nodes = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  CUDA_EMULATION_ENTER();
  *exec = new CUgraphExec_st{*graph, current_device()};
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  CUDA_EMULATION_ENTER();
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  CUDA_EMULATION_ENTER();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  CUDA_EMULATION_ENTER();
  const auto nodes = exec->graph.nodes;
  return enqueue(handle, [nodes] {
    everything_has_ended();
    for (const auto& node : nodes) {
      if (const cudaError_t error = node()) return error;
    }
    everything_has_ended();
    return cudaSuccess;
  });
}

// "Technical Specifications per Compute Capability".
namespace {

constexpr unsigned kMostThreads = 1024, kMostThreadsZ = 64;
constexpr unsigned kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;
constexpr size_t kMostArgumentBytes = 4096;  // 32764 from driver 530 and sm_70 on

}  // namespace

cudaError_t cuda_emulation::launch(const cudaLaunchConfig_t& config, const void* kernel,
                                   size_t argument_bytes, std::function<void()> body) {
  CUDA_EMULATION_ENTER();
  CUstream_st* stream = nullptr;
  if (const cudaError_t error = find_stream(config.stream, &stream)) return error;
  if (stream != nullptr && stream->device != current_device()) {
    return report(cudaErrorInvalidResourceHandle);
  }
  if (!is_device(current_device())) return report(cudaErrorNoDevice);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const size_t n_threads = size_t{block.x} * block.y * block.z;
  if (n_threads == 0 || block.x > kMostThreads || block.y > kMostThreads ||
      block.z > kMostThreadsZ || n_threads > kMostThreads || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > kMostBlocksX || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ) {
    return report(cudaErrorInvalidConfiguration);
  }
  size_t allowed = 48 * 1024;
  const auto found = runtime().allowed_shared.find({current_device(), kernel});
  if (found != runtime().allowed_shared.end()) allowed = found->second;
  if (allowed > machine().most_shared_bytes()) allowed = machine().most_shared_bytes();
  if (config.dynamicSmemBytes > allowed || argument_bytes > kMostArgumentBytes) {
    return report(cudaErrorInvalidValue);
  }
  bool programmatic = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) continue;
    programmatic = config.attrs[i].val.programmaticStreamSerializationAllowed != 0;
    if (programmatic && machine().major < 9) return report(cudaErrorNotSupported);
  }
  Grid work{kernel, grid, block, config.dynamicSmemBytes, programmatic, std::move(body)};
  return enqueue(config.stream, [work] {
    if (!work.programmatic) everything_has_ended();
    begin_writes();
    const std::string failure = run_grid(work);
    end_writes();
    ++runtime().launches;
    if (failure.empty()) return cudaSuccess;
    runtime().broken = true;
    runtime().failure = failure;
    return report(cudaErrorLaunchFailure);
  });
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  CUDA_EMULATION_ENTER();
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > machine().most_shared_bytes()) {
    return report(cudaErrorInvalidValue);
  }
  runtime().allowed_shared[{current_device(), kernel}] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  CUDA_EMULATION_ENTER();
  *attributes = {};
  attributes->maxThreadsPerBlock = static_cast<int>(kMostThreads);
  const auto found = runtime().allowed_shared.find({current_device(), kernel});
  attributes->maxDynamicSharedSizeBytes =
      found == runtime().allowed_shared.end() ? 48 * 1024 : static_cast<int>(found->second);
  return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char** name, const void* kernel) {
  *name = mangled_name(kernel);
  return *name == nullptr ? report(cudaErrorInvalidDeviceFunction) : cudaSuccess;
}
