// Keeps a model open in llama.cpp and times what bench_peers.py asks for, row by row, so that its
// rows and ours can alternate. It calls llama_decode as llama-bench and llama-batched-bench do:
// random tokens, nothing sampled.
//
// llama_cpp_driver MODEL N_THREADS N_CTX N_SEQUENCES f16|q8_0 FLASH_ATTENTION(0|1)
//
// Prints "ready", then answers each line of stdin with one line:
//   prefill N DEPTH       seconds of a prompt of N tokens, logits of the last
//   decode N DEPTH        seconds per token, the mean of N
//   step N DEPTH          seconds of one call of N tokens, logits of all: the median of some
//   batch N SEQUENCES     seconds of one call of a token per sequence, the mean of N, from depth 0
//   logits ID ID ...      the logits of every token of a sequence
// DEPTH is reached by computing random tokens, or by forgetting some.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBatch = 2048;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "llama_cpp_driver: %s\n", message.c_str());
  std::exit(1);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Driver {
 public:
  Driver(llama_model* model, llama_context* context)
      : context_(context),
        n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
        batch_(llama_batch_init(kBatch, 0, 1)) {}

  double prefill(int n, int depth) {
    go_to(depth);
    const auto start = Clock::now();
    append(n, /*all_logits=*/false);
    return seconds_since(start);
  }

  double decode(int n, int depth) {
    go_to(depth);
    const auto start = Clock::now();
    for (int i = 0; i < n; ++i) append(1, true);
    return seconds_since(start) / n;
  }

  double step(int n, int depth) {
    std::vector<double> times;
    double total = 0;
    while (times.size() < 3 || total < 1.0) {
      go_to(depth);
      const auto start = Clock::now();
      append(n, true);
      times.push_back(seconds_since(start));
      total += times.back();
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  double batch(int n, int n_sequences) {
    llama_memory_clear(llama_get_memory(context_), false);
    const auto start = Clock::now();
    for (int i = 0; i < n; ++i) {
      batch_.n_tokens = 0;
      for (int s = 0; s < n_sequences; ++s) add(random_token(), i, s, true);
      run();
    }
    const double seconds = seconds_since(start) / n;
    llama_memory_clear(llama_get_memory(context_), false);
    n_past_ = 0;
    return seconds;
  }

  void print_logits(const std::vector<int>& ids) {
    go_to(0);
    batch_.n_tokens = 0;
    for (int id : ids) add(id, n_past_++, 0, true);
    run();
    for (int i = 0; i < batch_.n_tokens; ++i) {
      const float* row = llama_get_logits_ith(context_, i);
      for (int v = 0; v < n_vocab_; ++v) std::printf("%.9g ", static_cast<double>(row[v]));
    }
    std::printf("\n");
  }

 private:
  int random_token() { return std::rand() % n_vocab_; }

  void add(int id, int position, int sequence, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = id;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = logits;
  }

  void run() {
    if (const int error = llama_decode(context_, batch_)) {
      fail("llama_decode returned " + std::to_string(error));
    }
    llama_synchronize(context_);
  }

  // Appends n random tokens to sequence 0.
  void append(int n, bool all_logits) {
    while (n > 0) {
      const int count = std::min(n, kBatch);
      n -= count;
      batch_.n_tokens = 0;
      for (int i = 0; i < count; ++i) {
        add(random_token(), n_past_++, 0, all_logits || (n == 0 && i == count - 1));
      }
      run();
    }
  }

  void go_to(int depth) {
    if (n_past_ > depth) {
      llama_memory_seq_rm(llama_get_memory(context_), 0, depth, -1);
      n_past_ = depth;
    }
    append(depth - n_past_, false);
  }

  llama_context* context_;
  int n_vocab_;
  llama_batch batch_;
  int n_past_ = 0;
};

void serve(Driver& driver) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::vector<int> numbers;
    for (int number; words >> number;) numbers.push_back(number);
    if (command == "logits") {
      driver.print_logits(numbers);
    } else if (numbers.size() != 2) {
      fail("wrong command: " + line);
    } else {
      const int n = numbers[0], other = numbers[1];
      double seconds = 0;
      if (command == "prefill") {
        seconds = driver.prefill(n, other);
      } else if (command == "decode") {
        seconds = driver.decode(n, other);
      } else if (command == "step") {
        seconds = driver.step(n, other);
      } else if (command == "batch") {
        seconds = driver.batch(n, other);
      } else {
        fail("unknown command: " + line);
      }
      std::printf("%.9g\n", seconds);
    }
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) fail("expected MODEL N_THREADS N_CTX N_SEQUENCES f16|q8_0 0|1");
  const int n_threads = std::atoi(argv[2]);
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) fail(std::string("cannot load ") + argv[1]);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(std::atoi(argv[3]));
  params.n_seq_max = static_cast<uint32_t>(std::atoi(argv[4]));
  params.n_batch = kBatch;
  params.n_ubatch = 512;
  params.n_threads = n_threads;
  params.n_threads_batch = n_threads;
  params.type_k = params.type_v =
      std::strcmp(argv[5], "q8_0") == 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
  params.flash_attn_type =
      argv[6][0] == '1' ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) fail("cannot make a context");
  Driver driver(model, context);
  std::printf("ready\n");
  std::fflush(stdout);
  serve(driver);
  llama_free(context);
  llama_model_free(model);
  return 0;
}
