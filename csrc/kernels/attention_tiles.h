// Register tiles of attention: several query rows share every key and value that is loaded and
// widened to float. What a row gets does not depend on the rows beside it.
#pragma once

#include "base/types.h"
#include "kernels/args.h"

namespace llama2q {

// A constant as an argument, so that a lambda can take it as a template parameter.
template <int kNumber>
struct Constant {
  static constexpr int kValue = kNumber;
};

// Calls f(row, Constant<n>) over rows [begin, end) in groups of kRows, the rest in smaller ones.
template <int kRows, class Function>
void for_row_groups(int64_t begin, int64_t end, const Function& f) {
  for (; begin + kRows <= end; begin += kRows) f(begin, Constant<kRows>());
  if constexpr (kRows > 1) {
    constexpr int kNext = kRows > 4 ? 4 : kRows > 3 ? 2 : kRows - 1;
    for_row_groups<kNext>(begin, end, f);
  }
}

// Columns of one register, and registers for 16 columns.
template <class V>
inline constexpr int kPartsOf16 = 16 / V::kPartLanes;

// The 16 lanes of products of kQueries query rows [kQueries, padded_dim] with kKeys keys, d
// ascending; lanes of four keys at a time are folded once and twice and packed:
// folded[query * kKeys / 4 + key / 4].
template <class V, int kQueries, int kKeys, class Element>
void dot_tile(const float* q, const Element* const (&keys)[kKeys], int64_t padded_dim,
              typename V::F* folded) {
  using Part = typename V::Part;
  constexpr int kParts = kPartsOf16<V>;
  // Where registers are short, the lower and the upper lanes are summed one after the other.
  constexpr int kAtOnce = kQueries * kKeys * kParts <= V::kTileRegisters ? kParts : 1;
  Part sums[kQueries][kKeys][kParts];
  for (int first = 0; first < kParts; first += kAtOnce) {
    Part acc[kQueries][kKeys][kAtOnce];
    for (int r = 0; r < kQueries; ++r) {
      for (int i = 0; i < kKeys; ++i) {
        for (int a = 0; a < kAtOnce; ++a) acc[r][i][a] = V::part(0.0f);
      }
    }
    for (int64_t d = first * V::kPartLanes; d < padded_dim; d += 16) {
      for (int a = 0; a < kAtOnce; ++a) {
        const int64_t at = d + a * V::kPartLanes;
        Part query[kQueries];
        for (int r = 0; r < kQueries; ++r) query[r] = V::load_part(q + r * padded_dim + at);
        for (int i = 0; i < kKeys; ++i) {
          const Part key = V::load_part(keys[i] + at);
          for (int r = 0; r < kQueries; ++r)
            acc[r][i][a] = V::fma_part(query[r], key, acc[r][i][a]);
        }
      }
    }
    for (int r = 0; r < kQueries; ++r) {
      for (int i = 0; i < kKeys; ++i) {
        for (int a = 0; a < kAtOnce; ++a) sums[r][i][first + a] = acc[r][i][a];
      }
    }
  }
  for (int r = 0; r < kQueries; ++r) {
    for (int i = 0; i < kKeys; i += 4) {
      folded[(r * kKeys + i) / 4] = V::fold_lanes(&sums[r][i][0]);
    }
  }
}

// One block of keys or values in the cache or widened beside it.
template <class Element>
struct BlockRows {
  const Element* rows;     // [64, stride]
  const uint16_t* scales;  // f16 [64] or null
  int64_t stride;          // elements
  const Element* next;     // the block that will be read next, or null
  int64_t ahead;           // keys between the one that is read and the one that is fetched; 0: none
};

// Bytes of K or V between what is read and what is fetched from memory. Measured on Zen 4: 2 KiB
// and 16 KiB cost 15 %.
inline constexpr int64_t kPrefetchDistance = 8192;

template <class Element>
int64_t keys_to_fetch_ahead(int64_t stride) {
  const int64_t keys = kPrefetchDistance / (stride * static_cast<int64_t>(sizeof(Element)));
  return keys < 1 ? 1 : keys < kBlockSize ? keys : kBlockSize;
}

// The columns of a key that will be read soon, or null.
template <class Element>
const Element* key_ahead(const BlockRows<Element>& block, int64_t key) {
  const int64_t ahead = key + block.ahead;
  if (ahead < kBlockSize) return block.rows + ahead * block.stride;
  return block.next == nullptr ? nullptr : block.next + (ahead - kBlockSize) * block.stride;
}

template <class V, class Element>
void prefetch_columns(const Element* p, int64_t n) {
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(64 / sizeof(Element)))
    V::prefetch_far(p + i);
}

// scores[r, key] = tree16(fma over d) * c, c = scale [* k_scale], for keys of the block up to
// counts[r], and -inf from there to a multiple of 16. counts ascend.
template <class V, int kQueries, class Element>
void score_tile(const BlockRows<Element>& k, float scale, const float* q, int64_t padded_dim,
                const int64_t* counts, float* scores, int64_t score_stride) {
  using F = typename V::F;
  constexpr int kKeys = kQueries == 1 && kPartsOf16<V> == 1 ? 8 : 4;
  constexpr int kFolded = kKeys / 4;
  const int64_t n_keys = counts[kQueries - 1];
  for (int64_t first = 0; first < n_keys; first += 16) {
    F folded[kQueries][4];
    for (int part = 0; part < 4; part += kFolded) {
      const int64_t begin = first + 4 * part;
      const Element* keys[kKeys];
      for (int64_t i = 0; i < kKeys; ++i) {
        // Beyond the last key stands the last one again; its score is replaced below.
        const int64_t key = begin + i < n_keys ? begin + i : n_keys - 1;
        keys[i] = k.rows + key * k.stride;
      }
      if (k.ahead != 0) {
        const Element* p = key_ahead(k, begin);
        if (p != nullptr) prefetch_columns<V>(p, kKeys * k.stride);
      }
      F some[kQueries * kFolded];
      dot_tile<V, kQueries, kKeys>(q, keys, padded_dim, some);
      for (int r = 0; r < kQueries; ++r) {
        for (int i = 0; i < kFolded; ++i) folded[r][part + i] = some[r * kFolded + i];
      }
    }
    F c = V::broadcast(scale);
    if (k.scales != nullptr) c = V::mul(V::load_f16(k.scales + first), c);
    for (int r = 0; r < kQueries; ++r) {
      F s = V::mul(V::finish_trees(folded[r]), c);
      const int64_t present = counts[r] - first;
      if (present < 16) s = V::fill_absent(s, present < 0 ? 0 : present, -__builtin_inff());
      V::store(scores + r * score_stride + first, s);
    }
  }
}

// acc[r, columns] = acc * rescale[r], then fma(weights[r, key], v[key], acc) over keys
// [begin, end), ascending; columns: kColumns registers from column d.
template <class V, int kQueries, int kColumns, class Element>
void value_tile(const BlockRows<Element>& v, int64_t d, int64_t begin, int64_t end,
                const float* weights, int64_t weight_stride, const float* rescale,
                int64_t rescale_stride, float* acc, int64_t acc_stride) {
  using Part = typename V::Part;
  Part sums[kQueries][kColumns];
  for (int r = 0; r < kQueries; ++r) {
    const Part factor = V::part(rescale[r * rescale_stride]);
    for (int i = 0; i < kColumns; ++i) {
      const float* from = acc + r * acc_stride + d + i * V::kPartLanes;
      sums[r][i] = V::mul_part(V::load_part(from), factor);
    }
  }
  for (int64_t key = begin; key < end; ++key) {
    const Element* row = v.rows + key * v.stride + d;
    if (v.ahead != 0) {
      const Element* p = key_ahead(v, key);
      if (p != nullptr) prefetch_columns<V>(p + d, kColumns * V::kPartLanes);
    }
    Part weight[kQueries];
    for (int r = 0; r < kQueries; ++r) weight[r] = V::part(weights[r * weight_stride + key]);
    for (int i = 0; i < kColumns; ++i) {
      const Part value = V::load_part(row + i * V::kPartLanes);
      for (int r = 0; r < kQueries; ++r) sums[r][i] = V::fma_part(weight[r], value, sums[r][i]);
    }
  }
  for (int r = 0; r < kQueries; ++r) {
    for (int i = 0; i < kColumns; ++i) {
      V::store_part(acc + r * acc_stride + d + i * V::kPartLanes, sums[r][i]);
    }
  }
}

// value_tile over all columns.
template <class V, int kQueries, class Element>
void value_rows(const BlockRows<Element>& v, int64_t padded_dim, int64_t begin, int64_t end,
                const float* weights, int64_t weight_stride, const float* rescale,
                int64_t rescale_stride, float* acc, int64_t acc_stride) {
  constexpr int kFit = V::kTileRegisters / kQueries;
  constexpr int kColumns = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  constexpr int64_t kWidth = kColumns * V::kPartLanes;
  int64_t d = 0;
  for (; d + kWidth <= padded_dim; d += kWidth) {
    value_tile<V, kQueries, kColumns>(v, d, begin, end, weights, weight_stride, rescale,
                                      rescale_stride, acc, acc_stride);
  }
  for (; d < padded_dim; d += V::kPartLanes) {
    value_tile<V, kQueries, 1>(v, d, begin, end, weights, weight_stride, rescale, rescale_stride,
                               acc, acc_stride);
  }
}

}  // namespace llama2q
