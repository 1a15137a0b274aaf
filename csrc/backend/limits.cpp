#include "backend/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "backend/thread_pool.h"
#include "base/buffer.h"
#include "base/check.h"
#include "base/os/memory.h"

namespace llama2q {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kVariants = 4;
constexpr int64_t kItemsPerThread = 8;
constexpr double kWindow = 0.005;    // seconds of a timed run: short, so that some are undisturbed
constexpr int64_t kPiece = 1 << 20;  // bytes that a thread takes at a time
constexpr int64_t kParts = 8;        // of the memory, timed one by one
constexpr size_t kFastPatterns = 4;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <class Function>
double seconds_of(Function&& f) {
  const auto start = Clock::now();
  f();
  return std::max(seconds_since(start), 1e-9);
}

void check_seconds(double seconds) {
  require(seconds > 0 && seconds <= 60,
          "seconds is " + std::to_string(seconds) + "; expected more than 0 and at most 60");
}

const char* name_of_variant(int variant) {
  constexpr const char* kNames[kVariants] = {"idiom 0, registers", "idiom 0, memory",
                                             "idiom 1, registers", "idiom 1, memory"};
  return kNames[variant];
}

// The best run but one: the best may owe its time to a clock that was set.
class Best {
 public:
  void add(double rate) {
    if (rate > first_) {
      second_ = first_;
      first_ = rate;
    } else if (rate > second_) {
      second_ = rate;
    }
  }
  double rate() const { return second_ > 0 ? second_ : first_; }

 private:
  double first_ = 0, second_ = 0;
};

struct Pattern {
  int64_t n_streams, prefetch_lines;
  bool pieces;  // threads take a piece at a time, or each one part of the whole
  Best best;

  std::string name(bool huge) const {
    return std::to_string(n_streams) + (n_streams == 1 ? " stream" : " streams") + ", prefetch " +
           std::to_string(64 * prefetch_lines) + " B, " +
           (pieces ? "pieces of 1 MiB" : "a part per thread") +
           (huge ? ", huge pages" : ", small pages");
  }
};

std::vector<Pattern> patterns() {
  std::vector<Pattern> all;
  for (const bool pieces : {false, true}) {
    for (const int64_t n_streams : {1, 2, 4, 8}) {
      for (const int64_t prefetch_lines : {0, 8, 32, 64}) {
        all.push_back({n_streams, prefetch_lines, pieces, {}});
      }
    }
  }
  return all;
}

void read_pieces(const KernelTable& table, ThreadPool& pool, const char* data, int64_t n_pieces,
                 const Pattern& pattern, std::atomic<uint32_t>& sink) {
  const int64_t parts = pattern.pieces ? n_pieces : std::min<int64_t>(pool.n_threads(), n_pieces);
  pool.parallel_for(parts, 1, [&](int64_t begin, int64_t end, int) {
    const int64_t first = n_pieces * begin / parts, last = n_pieces * end / parts;
    sink += table.probe_reads({reinterpret_cast<const float*>(data + first * kPiece),
                               (last - first) * kPiece / 64, pattern.n_streams,
                               pattern.prefetch_lines});
  });
}

}  // namespace

Rates measure_dot_rate(const KernelTable& table, int n_threads, double seconds) {
  check_seconds(seconds);
  ThreadPool pool(n_threads);
  Buffer<int8_t> operands;
  std::fill_n(operands.reserve(kDotProbeBytes), kDotProbeBytes, int8_t{1});
  int n_variants = 0;
  while (n_variants < kVariants && table.probe_dots(n_variants, 1, operands.data()) > 0) {
    ++n_variants;
  }
  const auto run = [&](int variant, int64_t rounds) {
    std::atomic<int64_t> products{0};
    const double time = seconds_of([&] {
      pool.parallel_for(kItemsPerThread * n_threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          products += table.probe_dots(variant, rounds, operands.data());
        }
      });
    });
    return std::pair<double, double>(time, 2.0 * static_cast<double>(products.load()) / time);
  };
  std::vector<Best> best(static_cast<size_t>(n_variants));
  std::vector<int64_t> rounds;
  for (int variant = 0; variant < n_variants; ++variant) {
    rounds.push_back(1000);
    while (run(variant, rounds.back()).first < kWindow / 2) rounds.back() *= 2;
  }
  // In turns, so that a neighbour's busy moment falls on all.
  const auto start = Clock::now();
  do {
    for (int variant = 0; variant < n_variants; ++variant) {
      const auto i = static_cast<size_t>(variant);
      best[i].add(run(variant, rounds[i]).second);
    }
  } while (seconds_since(start) < seconds);
  Rates rates;
  for (int variant = 0; variant < n_variants; ++variant) {
    rates.emplace_back(name_of_variant(variant), best[static_cast<size_t>(variant)].rate());
  }
  return rates;
}

Rates measure_read_bandwidth(const KernelTable& table, int n_threads, int64_t n_bytes,
                             double seconds) {
  check_seconds(seconds);
  require(n_bytes >= kPiece && n_bytes <= (int64_t{1} << 40),
          "n_bytes is " + std::to_string(n_bytes) + "; expected 1 MiB to 1 TiB");
  ThreadPool pool(n_threads);
  const int64_t n_pieces = n_bytes / kPiece;
  const int64_t n_timed = std::max<int64_t>(n_pieces / kParts, 1);
  std::atomic<uint32_t> sink{0};
  Rates rates;
  for (const bool huge : {false, true}) {
    Memory memory(n_pieces * kPiece, huge ? PageSize::kHuge : PageSize::kSmall);
    char* data = memory.data();
    pool.parallel_for(n_pieces, 1, [&](int64_t begin, int64_t end, int) {
      std::memset(data + begin * kPiece, 1, static_cast<size_t>((end - begin) * kPiece));
    });
    std::vector<Pattern> all = patterns();
    // A part at a time, so that some are undisturbed; all others before it comes round again, so
    // that no cache holds it.
    int64_t next = 0;
    const auto time = [&](Pattern& pattern) {
      const double one = seconds_of(
          [&] { read_pieces(table, pool, data + next * kPiece, n_timed, pattern, sink); });
      pattern.best.add(static_cast<double>(n_timed * kPiece) / one);
      next = next + 2 * n_timed <= n_pieces ? next + n_timed : 0;
    };
    // Half of the time for all patterns in turn (once at least), half for the fastest few.
    const double share = seconds / 2;
    const auto start = Clock::now();
    do {
      for (Pattern& pattern : all) time(pattern);
    } while (seconds_since(start) < share / 2);
    std::sort(all.begin(), all.end(),
              [](const Pattern& a, const Pattern& b) { return a.best.rate() > b.best.rate(); });
    while (seconds_since(start) < share) {
      for (size_t i = 0; i < kFastPatterns; ++i) time(all[i]);
    }
    for (const Pattern& pattern : all) rates.emplace_back(pattern.name(huge), pattern.best.rate());
  }
  return rates;
}

}  // namespace llama2q
