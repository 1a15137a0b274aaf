// The bounds. u = 2^-24 is the unit roundoff of float32, h = 2^-11 that of f16, t = 2^-25 the most
// by which rounding to a subnormal f16 moves a value; gamma(n) = n u / (1 - n u) bounds n roundings
// (Higham, Accuracy and Stability of Numerical Algorithms, Lemma 3.1).
//
// out = sum p v / sum p with p = exp(s - m), the same m above and below: however m was rounded, it
// cancels. What counts is by what factor 1 + d each p is off:
// - its score, a sum of products of magnitude S = sum |q k| scale, by at most `score` * S (and by
//   `score_absolute` * sum |k|): exp turns that into expm1 of it;
// - differences s - m, m - m', each rounded once: along the way they add up to at most the range R
//   of the scores, as often as there are stages: n_ranges u R;
// - exp itself, `exps` in all.
// Then |error of out| <= sum p |v| (d_i + sum p d) / (1 - sum p d) + sums * sum p |v| + absolute.
#include "reference.h"

#include <algorithm>
#include <cmath>

#include "base/types.h"
#include "harness.h"

namespace checks {
namespace {

constexpr double kU = 0x1p-24, kH = 0x1p-11, kT = 0x1p-25;

double gamma(double n) { return n * kU / (1 - n * kU); }

struct Rounding {
  double score, score_absolute;
  double n_ranges, exps;
  double sums;           // relative to sum p |v|
  double of_each_value;  // absolute, times sum |v|
  double absolute;
};

// A row of the cache, widened exactly.
std::vector<double> row_of(const HostCache& cache, const std::vector<uint8_t>& rows,
                           const std::vector<uint16_t>& scales, int64_t row) {
  const int64_t dim = cache.shape.head_dim;
  std::vector<double> x(static_cast<size_t>(dim));
  for (int64_t d = 0; d < dim; ++d) {
    const int64_t at = row * dim + d;
    double& value = x[static_cast<size_t>(d)];
    if (cache.shape.type == KvType::kF32) {
      value = reinterpret_cast<const float*>(rows.data())[at];
    } else if (cache.shape.type == KvType::kF16) {
      value = llama2q::f16_to_f32(reinterpret_cast<const uint16_t*>(rows.data())[at]);
    } else {
      value = static_cast<double>(reinterpret_cast<const int8_t*>(rows.data())[at]) *
              llama2q::f16_to_f32(scales[static_cast<size_t>(row)]);
    }
  }
  return x;
}

struct Key {
  std::vector<double> k, v;
};

// K and V of the keys that a token sees.
std::vector<Key> keys_of(const Step& step, int64_t token, int64_t kv_head) {
  std::vector<Key> keys;
  const HostCache& cache = *step.cache;
  for (int64_t i = 0; i <= step.positions[static_cast<size_t>(token)]; ++i) {
    const int64_t block = step.table(token)[i / kBlockSize];
    const int64_t row = (block * step.shape.n_kv_heads + kv_head) * kBlockSize + i % kBlockSize;
    keys.push_back(
        {row_of(cache, cache.k, cache.k_scales, row), row_of(cache, cache.v, cache.v_scales, row)});
  }
  return keys;
}

void attend_row(const float* q, const std::vector<Key>& keys, const Rounding& rounding, double* out,
                double* bound) {
  const size_t dim = keys[0].k.size(), n = keys.size();
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  std::vector<double> scores(n), errors(n);
  for (size_t i = 0; i < n; ++i) {
    double sum = 0, magnitude = 0, of_k = 0;
    for (size_t d = 0; d < dim; ++d) {
      sum += q[d] * keys[i].k[d];
      magnitude += std::abs(q[d] * keys[i].k[d]);
      of_k += std::abs(keys[i].k[d]);
    }
    scores[i] = sum * scale;
    errors[i] = rounding.score * magnitude * scale + rounding.score_absolute * of_k;
  }
  const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
  const double range = *most - *least, largest = *most;
  std::vector<double> p(n), moved(n);
  double total = 0, mean_moved = 0;
  for (size_t i = 0; i < n; ++i) {
    p[i] = std::exp(scores[i] - largest);
    total += p[i];
  }
  for (size_t i = 0; i < n; ++i) {
    p[i] /= total;
    moved[i] = std::expm1(errors[i] + rounding.n_ranges * kU * range) + rounding.exps;
    mean_moved += p[i] * moved[i];
  }
  for (size_t d = 0; d < dim; ++d) {
    double sum = 0, limit = rounding.absolute;
    for (size_t i = 0; i < n; ++i) {
      const double v = std::abs(keys[i].v[d]);
      sum += p[i] * keys[i].v[d];
      limit += p[i] * v * ((moved[i] + mean_moved) / (1 - mean_moved) + rounding.sums);
      limit += rounding.of_each_value * v;
    }
    out[d] = sum;
    bound[d] = limit;
  }
}

template <class RoundingOf>
Reference reference_of(const Step& step, RoundingOf rounding_of) {
  const Shape& shape = step.shape;
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  Reference reference;
  reference.out.resize(step.q.size());
  reference.bound.resize(step.q.size());
  for (int64_t t = 0; t < step.n_tokens(); ++t) {
    for (int64_t h = 0; h < shape.n_kv_heads; ++h) {
      const std::vector<Key> keys = keys_of(step, t, h);
      for (int64_t g = 0; g < group; ++g) {
        const int64_t at = (t * shape.n_heads + h * group + g) * shape.head_dim;
        attend_row(step.q.data() + at, keys, rounding_of(static_cast<double>(keys.size())),
                   reference.out.data() + at, reference.bound.data() + at);
      }
    }
  }
  return reference;
}

}  // namespace

// Scores: at most 8 products of a lane, 5 sums over lanes, two scales. Three stages (warp, block,
// fold) of differences and exps, which are good to 2 u. Values: v_scale, 32 keys of a lane, 4 sums
// over lanes, 4 warps, a quarter of the splits (of 128), 4 warps, the division; the sums below
// likewise.
Reference decode_reference(const Step& step) {
  return reference_of(step, [](double n_keys) {
    const double n = 1 + 32 + 4 + 4 + n_keys / 512 + 1 + 4 + 1;
    return Rounding{.score = gamma(16),
                    .score_absolute = 0,
                    .n_ranges = 3,
                    .exps = 3 * 2 * kU,
                    .sums = 2 * gamma(n),
                    .of_each_value = 0,
                    .absolute = 0x1p-126};
  });
}

// Scores: q is rounded to f16 after two products; then head_dim products, whose sums a device may
// truncate (2 u each), and int8's scale. A stage per tile of 64 keys, but the differences of all
// add up to R twice; exp2 is good to 4 u. Weights are rounded to f16, int8's values too.
Reference prefill_reference(const Step& step) {
  const double dim = static_cast<double>(step.shape.head_dim);
  const bool int8 = step.shape.type == KvType::kInt8;
  return reference_of(step, [=](double n_keys) {
    const double n_tiles = std::ceil(n_keys / 64);
    return Rounding{.score = kH + gamma(4 + 2 * dim),
                    .score_absolute = kT * std::log(2.0),
                    .n_ranges = 2,
                    .exps = (n_tiles + 1) * 4 * kU,
                    .sums = kH + (int8 ? kH : 0) + gamma(2 * n_keys + n_tiles) + gamma(n_keys + 2),
                    .of_each_value = kT,
                    .absolute = (int8 ? kT : 0) + 0x1p-126};
  });
}

void expect_close(const std::vector<float>& found, const Reference& reference,
                  const std::string& what) {
  expect(found.size() == reference.out.size(), what + ": sizes differ");
  for (size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(found[i] - reference.out[i]);
    if (error <= reference.bound[i]) continue;  // false for NaN
    throw Failure(what + ": element " + std::to_string(i) + " is " + std::to_string(found[i]) +
                  ", expected " + std::to_string(reference.out[i]) + " +- " +
                  std::to_string(reference.bound[i]));
  }
}

}  // namespace checks
