#include "calibrate/feedback.h"

#include <algorithm>

#include "calibrate/columns.h"

namespace llama2q {
namespace {

constexpr int64_t kStride = kFeedbackRows;

// A panel of rows, columns outside: f32 [cols, kFeedbackRows] each.
struct Panel {
  const KernelTable& table;
  const Int4Matrix& matrix;
  const Calibration& calibration;
  int64_t first_row;
  float* targets;
  float* weights;
  float* errors;
  float* gemm_scratch;

  int64_t cols() const { return matrix.source.cols; }
  int64_t width() const { return std::min(kFeedbackRows, matrix.source.rows - first_row); }

  // targets[j] += or -= the sum over k in [begin, end) of factors[k, j] * other[k], for the n
  // columns j from `column` on.
  void add_products(const float* other, int64_t begin, int64_t end, int64_t column, int64_t n,
                    bool subtract) const {
    table.gemm({.a = calibration.factors + begin * cols() + column,
                .b = other + begin * kStride,
                .c = targets + column * kStride,
                .m = n,
                .n = kStride,
                .depth = end - begin,
                .a_stride = cols(),
                .b_stride = kStride,
                .c_stride = kStride,
                .subtract = subtract,
                .lower = false},
               gemm_scratch);
  }

  int64_t columns_from(int64_t column) const {
    return std::min(matrix.group_size, cols() - column);
  }

  void load() const {
    load_columns(matrix.source, first_row, kFeedbackRows, 0, cols(), weights, kStride);
    if (calibration.correction == nullptr) {
      std::copy_n(weights, cols() * kStride, targets);
      return;
    }
    const float* from = calibration.correction + first_row;
    for (int64_t j = 0; j < cols(); ++j, from += matrix.source.rows) {
      float* to = targets + j * kStride;
      std::fill(std::copy_n(from, width(), to), to + kStride, 0.0f);
    }
    solve();
  }

  // targets -> weights + v, by way of z = v D: z[j] = correction[j] - sum over i < j of z[i]
  // L[j, i], i ascending; L[j, i] is read above the diagonal.
  void solve() const {
    for (int64_t column = 0; column < cols(); column += matrix.group_size) {
      const int64_t n = columns_from(column);
      add_products(targets, 0, column, column, n, true);
      for (int64_t j = column + 1; j < column + n; ++j) {
        add_products(targets, column, j, j, 1, true);
      }
    }
    for (int64_t j = 0; j < cols(); ++j) {
      const float pivot = calibration.factors[j * cols() + j];
      for (int64_t r = 0; r < kStride; ++r) {
        const int64_t at = j * kStride + r;
        targets[at] = weights[at] + targets[at] / pivot;
      }
    }
  }
};

}  // namespace

int64_t feedback_scratch(const Int4Matrix& matrix) {
  return 3 * matrix.source.cols * kFeedbackRows + kGemmScratch;
}

QuantizeFault feed_back_panel(const KernelTable& table, const Int4Matrix& matrix,
                              const Calibration& calibration, int64_t index,
                              const Int4Output& output, float* scratch) noexcept {
  const int64_t cols = matrix.source.cols, size = cols * kStride;
  const Panel panel = {.table = table,
                       .matrix = matrix,
                       .calibration = calibration,
                       .first_row = index * kFeedbackRows,
                       .targets = scratch,
                       .weights = scratch + size,
                       .errors = scratch + 2 * size,
                       .gemm_scratch = scratch + 3 * size};
  panel.load();
  const GridSearch grid = grid_search(matrix.grid);
  const int64_t n_bands = (panel.width() + kBandRows - 1) / kBandRows;
  QuantizeFault fault;
  for (int64_t g = (cols - 1) / matrix.group_size; g >= 0; --g) {
    const int64_t column = g * matrix.group_size, n = panel.columns_from(column);
    panel.add_products(panel.errors, column + n, cols, column, n, false);
    for (int64_t b = 0; b < n_bands; ++b) {
      const int64_t at = column * kStride + b * kBandRows;
      const int64_t band = panel.first_row / kBandRows + b;
      const FeedbackGroup group = {.targets = panel.targets + at,
                                   .weights = panel.weights + at,
                                   .errors = panel.errors + at,
                                   .factor = calibration.factors + column * cols + column,
                                   .importance = calibration.importance + column,
                                   .n = n,
                                   .stride = kStride,
                                   .factor_stride = cols};
      GroupCodes codes;
      uint16_t scales[kBandRows];
      if (!table.feed_back(group, grid, scales, codes.data())) {
        note_fault(matrix, band, column, n, group.targets, kStride, scales, fault);
        return fault;
      }
      store_group(matrix, band, g, n, codes, scales, output);
    }
  }
  return fault;
}

}  // namespace llama2q
