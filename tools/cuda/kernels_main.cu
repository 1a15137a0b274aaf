// Times each op of a layer as the backend starts it: chains of launches over distinct weights.
//
//   cuda_kernels --shape 7b [--only OP] [--tokens 1,8] [--seconds S] [--quick]
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "shapes.h"

namespace {

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> found;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) found.push_back(std::atoll(part.c_str()));
  return found;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  bench::Work work{};
  work.few = {1, 2, 4, 8, 16};
  work.many = {64, 512, 2048};
  work.depths = {0, 1024, 4000};
  work.prompts = {512, 2048};
  std::string shape = "7b";
  bool is_quick = false;
  for (int i = 1; i < n_arguments; ++i) {
    const std::string name = arguments[i];
    const std::string value = i + 1 < n_arguments ? arguments[i + 1] : "";
    if (name == "--quick") {
      is_quick = true;
      continue;
    }
    ++i;
    if (name == "--shape") shape = value;
    if (name == "--only") work.only = value;
    if (name == "--seconds") work.settings.seconds = std::atof(value.c_str());
    if (name == "--tokens") {
      work.few.clear();
      work.many.clear();
      for (const int64_t n : numbers(value)) (n > 32 ? work.many : work.few).push_back(n);
    }
  }
  for (const bench::Shape& known : bench::kShapes) {
    if (shape == known.name) work.shape = &known;
  }
  if (work.shape == nullptr) {
    std::fprintf(stderr, "cuda_kernels: no shape %s\n", shape.c_str());
    return 2;
  }
  bool is_usable = true;
  const bool ran = bench::guarded("kernels", [&] {
    const bench::Machine machine;
    work.settings.rotate_bytes = 4 * int64_t{machine.properties.l2CacheSize};
    if (is_quick) {
      // A check that everything runs: no figure of it means anything.
      work.settings = {.seconds = 0, .least_samples = 1, .rotate_bytes = 1, .chain_seconds = 0};
      work.few = {1, 3};
      work.many = {40};
      work.depths = {0, 70};
      work.prompts = {33};
    }
    is_usable =
        time_matmuls(machine, work) && time_attention(machine, work) && time_others(machine, work);
  });
  return ran && is_usable ? 0 : 1;
}
