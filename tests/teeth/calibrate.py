"""Faults in the linear algebra of calibration: csrc/kernels/gemm.h, ldl.h, csrc/calibrate."""

from __future__ import annotations

from teeth.mutant import fault

PRODUCTS = "kernels/test_products.py"
LDL = "kernels/test_ldl.py"

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
)
