"""Faults in the linear algebra of calibration: csrc/kernels/gemm.h, ldl.h, csrc/calibrate."""

from __future__ import annotations

from teeth.mutant import fault

PRODUCTS = "kernels/test_products.py"
LDL = "kernels/test_ldl.py"
SEARCH = "quant/test_search.py"
FEED_BACK = "kernels/test_feed_back.py"

CALIBRATE_FAULTS = (
    fault(
        "products: the sum starts at 0 and C is added last",
        "csrc/kernels/gemm.h",
        "  add_products<V>(a, kGemmRows<V>, b, kGemmColumns<V>, depth, acc);\n",
        """\
  typename V::Part sum[kGemmRows<V>][kGemmParts<V>];
  for (auto& row : sum) {
    for (auto& part : row) part = V::part(0.0f);
  }
  add_products<V>(a, kGemmRows<V>, b, kGemmColumns<V>, depth, sum);
  for (int r = 0; r < kGemmRows<V>; ++r) {
    for (int i = 0; i < kGemmParts<V>; ++i)
      acc[r][i] = V::fma_part(sum[r][i], V::part(1.0f), acc[r][i]);
  }
""",
        f"{PRODUCTS}::test_contract",
    ),
    fault(
        "products: the diagonal's tile written whole",
        "csrc/kernels/gemm.h",
        "j + kColumns <= gemm_row_end(args, i);",
        "j + kColumns <= gemm_row_end(args, last);",
        f"{PRODUCTS}::test_gram",
    ),
    fault(
        "products: the last columns dropped",
        "csrc/kernels/gemm.h",
        "if (i < n) {",
        "if (i + 1 < n) {",
        f"{PRODUCTS}::test_float64",
        f"{PRODUCTS}::test_contract",
    ),
    fault(
        "products: a subtraction adds where a strip is partial",
        "csrc/kernels/gemm.h",
        "i + q >= n ? 0.0f : kNegate ? -from[i + q] : from[i + q];",
        "i + q >= n ? 0.0f : from[i + q];",
        f"{PRODUCTS}::test_float64",
        f"{PRODUCTS}::test_contract",
    ),
    fault(
        "ldl: a row without the products of its own register tile",
        "csrc/kernels/ldl.h",
        "for (int r = p + 1; r < kRows; ++r) {",
        "for (int r = p + 2; r < kRows; ++r) {",
        f"{LDL}::test_factors_rebuild_the_matrix",
    ),
    fault(
        "ldl: an infinite pivot accepted",
        "csrc/kernels/ldl.h",
        "!(pivot < __builtin_inff())",
        "!(pivot <= __builtin_inff())",
        f"{LDL}::test_first_bad_pivot",
    ),
    fault(
        "ldl: what is left of the matrix keeps the last block's part",
        "csrc/calibrate/ldl.cpp",
        ".depth = width,",
        ".depth = width - 1,",
        f"{LDL}::test_factors_rebuild_the_matrix",
    ),
    fault(
        "search: the columns' importance left out of the errors",
        "csrc/kernels/int4_groups.h",
        "      errors = V::mul(errors, weight);\n",
        "",
        f"{SEARCH}::test_core_gives_the_definition",
    ),
    fault(
        "search: the least-squares scale never tried",
        "csrc/kernels/int4_groups.h",
        "for (int round = 0; round < kScaleRefits; ++round) {",
        "for (int round = 0; round < 0; ++round) {",
        f"{SEARCH}::test_core_gives_the_definition",
    ),
    fault(
        "feedback: errors relative to the targets, not to the weights",
        "csrc/kernels/int4_groups.h",
        "V::sub(V::load(group.weights + j * stride), value);",
        "V::sub(V::load(group.targets + j * stride), value);",
        f"{FEED_BACK}::test_every_code_is_the_nearest",
    ),
    fault(
        "feedback: a group's first column gets nothing from its last",
        "csrc/kernels/int4_groups.h",
        "for (int64_t i = 0; i < j; ++i) {",
        "for (int64_t i = j + 1 == n ? 1 : 0; i < j; ++i) {",
        f"{FEED_BACK}::test_every_code_is_the_nearest",
    ),
    fault(
        "feedback: later groups are passed over",
        "csrc/calibrate/feedback.cpp",
        "panel.add_products(panel.errors, column + n, cols, column, n, false);",
        "panel.add_products(panel.errors, column + n, column + n, column, n, false);",
        f"{FEED_BACK}::test_every_code_is_the_nearest",
    ),
    fault(
        "feedback: a correction is not divided by D",
        "csrc/calibrate/feedback.cpp",
        "targets[at] = weights[at] + targets[at] / pivot;",
        "targets[at] = weights[at] + targets[at];",
        f"{FEED_BACK}::test_every_code_is_the_nearest",
    ),
    fault(
        "feedback: panels begin a band apart",
        "csrc/calibrate/feedback.cpp",
        ".first_row = index * kFeedbackRows,",
        ".first_row = index * kBandRows,",
        f"{FEED_BACK}::test_every_code_is_the_nearest",
    ),
)
