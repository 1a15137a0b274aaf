// Loops that do one thing as fast as the instruction set allows: the denominators of benchmarks.
//
// V::Peak offers the fastest exact int8 dots of the tier, kIdioms of them: types Weights and
// Activations, `weights` (a vector of them from memory), `activations` (a broadcast from memory),
// `keep` (the value is used and may change: nothing is hoisted, merged or dropped), kSums sums in
// flight, and `dot<idiom>(sum, weights, activations)`, which is kProducts<idiom> products.
#pragma once

#include "kernels/args.h"

namespace llama2q {

// Token t of a tile: a line of weights each for the sums of token t. A recursion and no loop, since
// compilers keep an array in registers only where every index is a constant from the start.
template <class Peak, int kIdiom, bool kFromMemory, int t = 0>
inline void dot_tile(typename Peak::Sum (&sums)[Peak::kSums], typename Peak::Weights w0,
                     typename Peak::Weights w1, typename Peak::Activations& a, const int8_t* x) {
  if constexpr (2 * t < Peak::kSums) {
    if constexpr (kFromMemory) {
      a = Peak::activations(x + 4 * t);
    } else {
      Peak::keep(a);
    }
    Peak::template dot<kIdiom>(sums[2 * t], w0, a);
    Peak::template dot<kIdiom>(sums[2 * t + 1], w1, a);
    dot_tile<Peak, kIdiom, kFromMemory, t + 1>(sums, w0, w1, a, x);
  }
}

template <class Peak, int i = 0>
inline void keep_all(typename Peak::Sum (&sums)[Peak::kSums]) {
  if constexpr (i < Peak::kSums) {
    Peak::keep(sums[i]);
    keep_all<Peak, i + 1>(sums);
  }
}

// A tile of 2 lines of weights by kSums / 2 tokens, over and over. Returns the multiplications
// (each with its addition) done.
template <class V, int kIdiom, bool kFromMemory>
int64_t dot_loop(int64_t rounds, const int8_t* operands) {
  using Peak = typename V::Peak;
  typename Peak::Sum sums[Peak::kSums] = {};
  const auto w0 = Peak::weights(operands), w1 = Peak::weights(operands + 64);
  auto a = Peak::activations(operands);
  for (int64_t round = 0; round < rounds; ++round) {
    dot_tile<Peak, kIdiom, kFromMemory>(sums, w0, w1, a, operands + (round & 63) * 64);
  }
  keep_all<Peak>(sums);
  return rounds * Peak::kSums * Peak::template kProducts<kIdiom>;
}

// operands: i8 [kDotProbeBytes]. Variant 2 * idiom has its operands in registers, 2 * idiom + 1
// reads the activations from memory as it goes. Returns 0 for a variant that there is not.
template <class V>
int64_t probe_dots(int variant, int64_t rounds, const int8_t* operands) noexcept {
  switch (variant) {
    case 0:
      return dot_loop<V, 0, false>(rounds, operands);
    case 1:
      return dot_loop<V, 0, true>(rounds, operands);
  }
  if constexpr (V::Peak::kIdioms > 1) {
    switch (variant) {
      case 2:
        return dot_loop<V, 1, false>(rounds, operands);
      case 3:
        return dot_loop<V, 1, true>(rounds, operands);
    }
  }
  return 0;
}

template <class V, int kStreams, bool kPrefetch>
uint32_t read_loop(const ReadProbe& probe) {
  constexpr int64_t kUnroll = 4, kFloats = 16;
  const int64_t stride = probe.n_lines / kStreams / kUnroll * kUnroll * kFloats;
  const int64_t ahead = probe.prefetch_lines * kFloats;
  typename V::I sums[kUnroll];
  for (auto& sum : sums) sum = V::zero_int();
  for (const float *p = probe.data, *end = p + stride; p < end; p += kUnroll * kFloats) {
    for (int s = 0; s < kStreams; ++s) {
      for (int64_t u = 0; u < kUnroll; ++u) {
        const float* line = p + s * stride + u * kFloats;
        if constexpr (kPrefetch) V::prefetch(line + ahead);
        sums[u] = V::or_int(sums[u], V::magnitude_bits(V::load(line)));
      }
    }
  }
  return V::max_lanes(V::or_int(V::or_int(sums[0], sums[1]), V::or_int(sums[2], sums[3])));
}

template <class V, int kStreams>
uint32_t read_streams(const ReadProbe& probe) {
  return probe.prefetch_lines > 0 ? read_loop<V, kStreams, true>(probe)
                                  : read_loop<V, kStreams, false>(probe);
}

// Returns what was read, folded, so that reading cannot be left out.
template <class V>
uint32_t probe_reads(const ReadProbe& probe) noexcept {
  switch (probe.n_streams) {
    case 1:
      return read_streams<V, 1>(probe);
    case 2:
      return read_streams<V, 2>(probe);
    case 4:
      return read_streams<V, 4>(probe);
    default:
      return read_streams<V, 8>(probe);
  }
}

}  // namespace llama2q
