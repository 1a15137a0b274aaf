// Many tokens: bands are unpacked once into a panel, which tiles of tokens then pass over.
//
// A panel line is 16 rows x P::kColumns columns as the instruction set multiplies them, 64 bytes or
// more; a token's unit beside it is its codes of these columns. A tile is up to V::kPanelTokens
// tokens; its dots stay in registers over a group, its sums over a panel, too, where there are
// enough of them, else in memory. A long row may be cut into panels of any length.
#pragma once

#include "kernels/args.h"
#include "kernels/math.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace llama2q {

// Bytes of a panel line of one band.
template <class P>
inline constexpr int64_t kPanelLineBytes = sizeof(typename P::Weights);

// Columns of a token whose codes stand together in a tile of ActivationView: a quad, or a panel
// line's if they are more.
template <class V>
inline constexpr int64_t kUnitColumns = V::Panel::kColumns > 4 ? V::Panel::kColumns : 4;

// What a tile passes over: the groups [0, n_groups) of a panel.
struct PanelView {
  const uint8_t* lines;  // [n_groups * lines_per_group, n_bands, kPanelLineBytes]
  const float* scales;   // [n_groups, n_bands, 16]
  int64_t n_groups;
  int64_t lines_per_group;
};

// A tile's activations from the panel's first column on.
template <class P>
struct PanelTokens {
  const typename P::Code* codes;  // [n_groups * lines_per_group, kTokens, 4 bytes]
  const float* scales;            // [n_groups, kTokens]
  const int32_t* corrections;     // [n_groups, kTokens]
};

// Adds the products of n_lines panel lines to sums[kTokens][kBands], with P's `multiply(sum, w,
// a)`.
template <class P, int kBands, int kTokens, class Sum, class Multiply>
[[gnu::always_inline]] inline void add_lines(const uint8_t*& line, const typename P::Code*& codes,
                                             int64_t n_lines, Sum (&sums)[kTokens][kBands],
                                             Multiply multiply) {
  for (int64_t i = 0; i < n_lines; ++i) {
    typename P::Weights w[kBands];
    for (int b = 0; b < kBands; ++b) w[b] = P::load(line + b * kPanelLineBytes<P>);
    for (int t = 0; t < kTokens; ++t) {
      const typename P::Unit a = P::broadcast(codes + t * P::kUnitCodes);
      for (int b = 0; b < kBands; ++b) multiply(sums[t][b], w[b], a);
    }
    line += kBands * kPanelLineBytes<P>;
    codes += kTokens * P::kUnitCodes;
  }
}

// As group_dots, over one token and one line after the other.
template <class P, int kBands, int kTokens>
[[gnu::always_inline]] inline void shared_group_dots(const uint8_t*& line, int64_t n_lines,
                                                     const typename P::Code*& codes,
                                                     const int32_t* corrections,
                                                     typename P::Dot (&dots)[kTokens][kBands]) {
  for (int t = 0; t < kTokens; ++t) {
    for (int b = 0; b < kBands; ++b) dots[t][b] = P::start(corrections[t]);
  }
  const auto multiply = [](auto& sum, const auto& w, const auto& a) { P::multiply(sum, w, a); };
  if constexpr (P::kRunLines == 0) {
    add_lines<P>(line, codes, n_lines, dots, multiply);
  } else {
    const auto start = [](auto& sum, const auto& w, const auto& a) { P::start_run(sum, w, a); };
    for (int64_t j = 0; j < n_lines; j += P::kRunLines) {
      typename P::Run run[kTokens][kBands];
      add_lines<P>(line, codes, 1, run, start);
      add_lines<P>(line, codes, P::kRunLines - 1, run, multiply);
      for (int t = 0; t < kTokens; ++t) {
        for (int b = 0; b < kBands; ++b) P::finish_run(run[t][b], dots[t][b]);
      }
    }
  }
}

// Exact dots of one group: [kTokens][kBands] vectors of 16 rows. P may bring its own text, which
// takes activations by lane or several tokens at once.
template <class P, int kBands, int kTokens>
[[gnu::always_inline]] inline void group_dots(const uint8_t*& line, int64_t n_lines,
                                              const typename P::Code*& codes,
                                              const int32_t* corrections,
                                              typename P::Dot (&dots)[kTokens][kBands]) {
  if constexpr (requires { P::template group_dots<kBands, kTokens>(line, n_lines, codes, dots); }) {
    return P::template group_dots<kBands, kTokens>(line, n_lines, codes, dots);
  } else {
    shared_group_dots<P, kBands, kTokens>(line, n_lines, codes, corrections, dots);
  }
}

// sums[b][t] = fma(float(dot), w_scale * a_scale, sums[b][t]) for each group of the panel. Not
// inlined: GCC 12 then runs out of registers.
template <class V, class P, int kBands, int kTokens>
[[gnu::noinline]] void panel_tile(const PanelView& panel, PanelTokens<P> x, float* sums,
                                  int64_t sums_stride) {
  const auto place = [&](int t, int b) { return sums + b * sums_stride + t * kBandRows; };
  typename V::F kept[kTokens][kBands];
  if constexpr (V::kRegisterSums) {
    for (int t = 0; t < kTokens; ++t) {
      for (int b = 0; b < kBands; ++b) kept[t][b] = V::load(place(t, b));
    }
  }
  const uint8_t* line = panel.lines;
  const float* w_scales = panel.scales;
  for (int64_t g = 0; g < panel.n_groups; ++g) {
    // Sums in memory stay there: no copies on the stack.
    if constexpr (!V::kRegisterSums) __asm__("" ::: "memory");
    typename P::Dot dots[kTokens][kBands];
    group_dots<P, kBands, kTokens>(line, panel.lines_per_group, x.codes, x.corrections, dots);
    typename V::F w_scale[kBands];
    for (int b = 0; b < kBands; ++b) w_scale[b] = V::load(w_scales + b * kBandRows);
    for (int t = 0; t < kTokens; ++t) {
      const typename V::F a_scale = V::broadcast(x.scales[t]);
      for (int b = 0; b < kBands; ++b) {
        const typename V::F dot = V::to_float(P::finish(dots[t][b]));
        const typename V::F scale = V::mul(w_scale[b], a_scale);
        if constexpr (V::kRegisterSums) {
          kept[t][b] = V::fma(dot, scale, kept[t][b]);
        } else {
          V::store(place(t, b), V::fma(dot, scale, V::load(place(t, b))));
        }
      }
    }
    w_scales += kBands * kBandRows;
    x.scales += kTokens;
    x.corrections += kTokens;
  }
  if constexpr (V::kRegisterSums) {
    for (int t = 0; t < kTokens; ++t) {
      for (int b = 0; b < kBands; ++b) V::store(place(t, b), kept[t][b]);
    }
  }
}

template <class V, class P, int kBands, int kTokens>
void tile_of_width(int64_t width, const PanelView& panel, const PanelTokens<P>& x, float* sums,
                   int64_t sums_stride) {
  if (width == kTokens) {
    panel_tile<V, P, kBands, kTokens>(panel, x, sums, sums_stride);
  } else if constexpr (kTokens > 1) {
    tile_of_width<V, P, kBands, kTokens - 1>(width, panel, x, sums, sums_stride);
  }
}

// The product of one matrix's bands and one block of tokens.
template <class V, class P, class Lines>
class PanelProduct {
 public:
  PanelProduct(const MatrixView& w, const ActivationView& x, int64_t t0, int64_t t1, float* scratch)
      : w_(w), lines_(P::grid(w)), x_(x), t0_(t0), t1_(t1) {
    static_assert(kPanelTokenBlock % V::kPanelTokens == 0);
    const int64_t columns = panel_columns(x.n_tokens);
    groups_ = columns / w.group_size;
    panel_ = reinterpret_cast<uint8_t*>(scratch);
    scales_ = scratch + columns * kMostPanelBands * kBandRows / 4;
    sums_ = scales_ + columns / 32 * kMostPanelBands * kBandRows;
  }

  // Sums of the bands [band, band + count), count <= 2.
  void run(int64_t band, int64_t count) {
    for (int64_t i = 0; i < count * n_tokens() * kBandRows; i += 16) {
      V::store(sums_ + i, V::broadcast(0.0f));
    }
    if (V::kPanelBands == 2 && count == 2) return run_bands<V::kPanelBands>(band, sums_);
    for (int64_t b = 0; b < count; ++b) run_bands<1>(band + b, sums_of(b));
  }

  int64_t n_tokens() const { return t1_ - t0_; }
  float* sums_of(int64_t band) const { return sums_ + band * n_tokens() * kBandRows; }

 private:
  template <int kBands>
  void run_bands(int64_t band, float* sums) {
    for (int64_t g = 0; g < w_.n_groups; g += groups_) {
      const int64_t n = w_.n_groups - g < groups_ ? w_.n_groups - g : groups_;
      for (int b = 0; b < kBands; ++b) unpack(band + b, g, n, b, kBands);
      const PanelView panel{panel_, scales_, n, w_.group_size / P::kColumns};
      for (int64_t t = t0_; t < t1_; t += V::kPanelTokens) {
        const int64_t width = t1_ - t < V::kPanelTokens ? t1_ - t : V::kPanelTokens;
        const int64_t skipped = t * w_.n_groups + g * width;
        const PanelTokens<P> tokens{P::codes(x_) + skipped * w_.group_size, x_.scales + skipped,
                                    x_.corrections + skipped};
        tile_of_width<V, P, kBands, V::kPanelTokens>(
            width, panel, tokens, sums + (t - t0_) * kBandRows, n_tokens() * kBandRows);
      }
    }
  }

  // Groups [g, g + n) of a band go to place b of the n_bands in a panel line.
  void unpack(int64_t band, int64_t g, int64_t n, int b, int n_bands) {
    const int64_t lines_per_group = w_.group_size / Lines::kColumns;
    const uint8_t* line = static_cast<const uint8_t*>(w_.codes) +
                          (band * w_.n_groups + g) * lines_per_group * kLineBytes;
    uint8_t* out = panel_ + b * kPanelLineBytes<P>;
    constexpr int64_t kLines = P::kColumns > Lines::kColumns ? P::kColumns / Lines::kColumns : 1;
    for (int64_t i = 0; i < n * lines_per_group; i += kLines, line += kLines * kLineBytes) {
      for (int64_t k = 0; k < kLines; ++k) V::prefetch_far(line + 4096 + k * kLineBytes);
      out = lines_.template unpack<P>(line, out, n_bands * kPanelLineBytes<P>);
    }
    const uint16_t* scales = w_.scales + (band * w_.n_groups + g) * kBandRows;
    for (int64_t i = 0; i < n; ++i) {
      V::store(scales_ + (i * n_bands + b) * kBandRows, V::load_f16(scales + i * kBandRows));
    }
  }

  const MatrixView& w_;
  Lines lines_;
  const ActivationView& x_;
  int64_t t0_, t1_;
  int64_t groups_;  // of a panel
  uint8_t* panel_;  // [lines, bands, kPanelLineBytes]
  float* scales_;   // [groups, bands, 16]
  float* sums_;     // [2, n_tokens, 16]
};

}  // namespace llama2q
