#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>

#include "measure.h"

namespace bench {
namespace {

using llama2q::cuda::check;
using llama2q::cuda::Stream;

constexpr int64_t kBlockBytes = int64_t{1} << 20;
constexpr int kMostLaunches = 1024;

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// A chain of launches, to be queued as one.
class Chain {
 public:
  Chain(const Stream& stream, int n, const std::function<void(const Stream&, int)>& queue) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed), "capturing");
    try {
      for (int i = 0; i < n; ++i) queue(stream, i);
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream.handle, &graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    check(cudaStreamEndCapture(stream.handle, &graph), "ending the capture");
    const cudaError_t error = cudaGraphInstantiate(&handle_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(error, "instantiating the graph");
  }
  ~Chain() { static_cast<void>(cudaGraphExecDestroy(handle_)); }
  Chain(const Chain&) = delete;
  Chain& operator=(const Chain&) = delete;

  void queue(const Stream& stream) const {
    check(cudaGraphLaunch(handle_, stream.handle), "launching the graph");
  }

 private:
  cudaGraphExec_t handle_ = nullptr;
};

struct Event {
  Event() { check(cudaEventCreate(&handle), "making an event"); }
  ~Event() { static_cast<void>(cudaEventDestroy(handle)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t handle = nullptr;
};

double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

Memory::Memory(int64_t bytes) {
  const std::string what = "allocating " + std::to_string(bytes) + " bytes";
  check(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(bytes, 256))), what.c_str());
}

Memory::~Memory() {
  if (data_ != nullptr) static_cast<void>(cudaFree(data_));
}

std::vector<unsigned char> random_bytes() {
  std::mt19937_64 random(1);
  std::vector<unsigned char> block(kBlockBytes);
  for (size_t i = 0; i < block.size(); i += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(block.data() + i, &word, sizeof word);
  }
  return block;
}

std::vector<unsigned char> random_halves() {
  std::vector<unsigned char> block = random_bytes();
  for (size_t i = 0; i < block.size(); i += 2) {
    // Exponents 8 to 14 of 15: magnitudes from 2^-7 to 1.
    const unsigned bits = block[i] | static_cast<unsigned>(block[i + 1]) << 8;
    const unsigned half = (bits & 0x83ffu) | (8u + (bits >> 10 & 31u) % 7u) << 10;
    block[i] = static_cast<unsigned char>(half & 0xffu);
    block[i + 1] = static_cast<unsigned char>(half >> 8);
  }
  return block;
}

std::vector<unsigned char> repeated_word(uint32_t word) {
  std::vector<unsigned char> block(kBlockBytes);
  for (size_t i = 0; i < block.size(); i += sizeof word) {
    std::memcpy(block.data() + i, &word, sizeof word);
  }
  return block;
}

void fill(void* memory, int64_t bytes, const std::vector<unsigned char>& block) {
  auto* const to = static_cast<unsigned char*>(memory);
  const auto size = static_cast<int64_t>(block.size());
  const int64_t first = std::min(bytes, size);
  check(cudaMemcpy(to, block.data(), static_cast<size_t>(first), cudaMemcpyHostToDevice),
        "copying to the device");
  // What is there is doubled on the device.
  for (int64_t done = first; done < bytes;) {
    const int64_t more = std::min(done / size * size, bytes - done);
    check(cudaMemcpy(to + done, to, static_cast<size_t>(more), cudaMemcpyDeviceToDevice),
          "copying on the device");
    done += more;
  }
}

Memory upload(const void* host, int64_t bytes) {
  Memory memory(bytes);
  check(cudaMemcpy(memory.as(), host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
        "copying to the device");
  return memory;
}

Memory zeros(int64_t bytes) {
  Memory memory(bytes);
  check(cudaMemset(memory.as(), 0, static_cast<size_t>(bytes)), "clearing memory");
  check(cudaDeviceSynchronize(), "clearing memory");
  return memory;
}

Memory random_floats(int64_t n) {
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(kBlockBytes) / sizeof(float));
  for (float& value : values) value = uniform(random);
  std::vector<unsigned char> block(static_cast<size_t>(kBlockBytes));
  std::memcpy(block.data(), values.data(), block.size());
  const int64_t bytes = n * int64_t{sizeof(float)};
  Memory memory(bytes);
  fill(memory.as(), bytes, block);
  return memory;
}

int rotations(const Settings& settings, int64_t bytes, int most) {
  const int64_t wanted = settings.rotate_bytes / std::max<int64_t>(bytes, 1) + 1;
  return static_cast<int>(std::clamp<int64_t>(wanted, 2, std::max(most, 2)));
}

Times time_chain(const Settings& settings, const Stream& stream, int n_buffers, double guess_us,
                 const std::function<void(const Stream&, int)>& queue) {
  // Kernels are loaded and allowed their shared memory outside of the capture.
  queue(stream, 0);
  check(cudaStreamSynchronize(stream.handle), "a first launch");
  const double wanted = settings.chain_seconds * 1e6 / std::max(guess_us, 0.5);
  const int n = std::clamp(static_cast<int>(wanted), n_buffers, std::max(n_buffers, kMostLaunches));
  const Chain chain(stream, n, queue);
  const Event begin, end;
  chain.queue(stream);
  check(cudaStreamSynchronize(stream.handle), "a first chain of launches");
  std::vector<double> samples;
  const double started = now();
  while (static_cast<int>(samples.size()) < settings.least_samples ||
         now() - started < settings.seconds) {
    // A long row is cut short: five samples are enough to see that it is slow.
    if (samples.size() >= 5 && now() - started > 10 * settings.seconds) break;
    check(cudaEventRecord(begin.handle, stream.handle), "recording an event");
    chain.queue(stream);
    check(cudaEventRecord(end.handle, stream.handle), "recording an event");
    check(cudaEventSynchronize(end.handle), "a chain of launches");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.handle, end.handle), "reading events");
    samples.push_back(1e3 * double{milliseconds} / n);
  }
  std::sort(samples.begin(), samples.end());
  return {quantile(samples, 0.5), quantile(samples, 0.1), quantile(samples, 0.9),
          static_cast<int>(samples.size()), n};
}

Row& Row::text(const char* key, const std::string& value) {
  line_ += line_.empty() ? "{\"" : ", \"";
  line_ += key;
  line_ += "\": \"";
  for (const char c : value) {
    if (c == '"' || c == '\\') line_ += '\\';
    line_ += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  line_ += '"';
  return *this;
}

Row& Row::number(const char* key, double value) {
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.9g", value);
  line_ += line_.empty() ? "{\"" : ", \"";
  line_ += key;
  line_ += "\": ";
  line_ += std::isfinite(value) ? digits : "null";
  return *this;
}

Row& Row::times(const Times& times, const std::string& prefix) {
  number(prefix.c_str(), times.median);
  number((prefix + "_p10").c_str(), times.p10);
  number((prefix + "_p90").c_str(), times.p90);
  number((prefix + "_samples").c_str(), times.samples);
  return number((prefix + "_launches").c_str(), times.launches);
}

void Row::print() const {
  std::printf("%s}\n", line_.c_str());
  std::fflush(stdout);
}

Machine::Machine() {
  check(cudaSetDevice(0), "choosing the GPU");
  check(cudaGetDeviceProperties(&properties, 0), "reading the GPU's properties");
  check(cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking), "making a stream");
  stream.programmatic = properties.major >= 9;
}

Machine::~Machine() { static_cast<void>(cudaStreamDestroy(stream.handle)); }

bool guarded(const std::string& what, const std::function<void()>& body) {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    Row().text("what", what).text("error", error.what()).print();
  }
  const bool usable = cudaDeviceSynchronize() == cudaSuccess;
  static_cast<void>(cudaGetLastError());
  return usable;
}

}  // namespace bench
