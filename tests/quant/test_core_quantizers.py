"""The C++ quantizers give the bytes of the NumPy definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2q.errors import NonFiniteWeightError, QuantizationError
from llama2q.quant import GRIDS, GROUP_SIZES, dense, grid_values, int4, int8

_core = pytest.importorskip("llama2q._core", reason="the extension is not built here")

SHAPES = [(1, 1), (1, 32), (3, 33), (16, 64), (17, 100), (31, 172), (48, 172), (64, 300)]
DTYPES = ["f32", "f16", "bf16"]


def weights_of(shape: tuple[int, int], dtype: str, seed: int) -> NDArray[Any]:
    """Return finite weights of a dtype: bit patterns at random, zeros, ties and tiny groups."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, shape).astype(np.float32)
    exponent = rng.choice([0, -10, -17, -24, -30, -126, -149, 10, 13], size=(shape[0], 1))
    weights = np.ldexp(weights, exponent).astype(np.float32)
    kind = rng.integers(0, 6, shape[0])
    weights[kind == 0] = 0.0
    weights[kind == 1] = np.rint(rng.normal(0, 20, shape))[kind == 1]
    weights[kind == 2] = -np.abs(weights[kind == 2])
    weights[rng.random(shape) < 0.1] = -0.0
    if dtype == "f16":
        return np.clip(weights, -6e4, 6e4).astype(np.float16)
    if dtype == "bf16":
        return (weights.view(np.uint32) >> 16).astype(np.uint16)
    return weights


def assert_same_bytes(found: tuple[NDArray[Any], ...], expected: tuple[NDArray[Any], ...]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("grid", GRIDS)
@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 9999))
def test_int4(group_size: int, grid: str, shape: tuple[int, int], dtype: str, seed: int) -> None:
    weights = weights_of(shape, dtype, seed)
    values = grid_values(grid)
    assert_same_bytes(
        _core.quantize_int4(weights, group_size, values),
        int4.encode(weights, group_size, values),
    )


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 9999))
def test_int8(group_size: int, shape: tuple[int, int], dtype: str, seed: int) -> None:
    weights = weights_of(shape, dtype, seed)
    assert_same_bytes(_core.quantize_int8(weights, group_size), int8.encode(weights, group_size))
    assert_same_bytes(
        _core.quantize_rows_int8(weights, group_size), int8.encode_rows(weights, group_size)
    )


@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 9999))
def test_dense(shape: tuple[int, int], dtype: str, seed: int) -> None:
    weights = weights_of(shape, dtype, seed)
    assert_same_bytes((_core.pack_dense(weights),), (dense.encode(weights),))


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-4e5, max_value=4e5),
        min_size=1,
        max_size=70,
    )
)
def test_any_floats(values: list[float]) -> None:
    weights = np.array([values], dtype=np.float32)
    for grid in GRIDS:
        assert_same_bytes(
            _core.quantize_int4(weights, 32, grid_values(grid)),
            int4.encode(weights, 32, grid_values(grid)),
        )
    assert_same_bytes(_core.quantize_int8(weights, 32), int8.encode(weights, 32))


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
def test_threads_change_nothing(n_threads: int) -> None:
    weights = weights_of((213, 172), "f32", 3)
    grid = grid_values("nonuniform")
    assert_same_bytes(
        _core.quantize_int4(weights, 64, grid, n_threads), int4.encode(weights, 64, grid)
    )
    assert_same_bytes(_core.quantize_int8(weights, 64, n_threads), int8.encode(weights, 64))
    assert_same_bytes(
        _core.quantize_rows_int8(weights, 64, n_threads), int8.encode_rows(weights, 64)
    )
    assert_same_bytes((_core.pack_dense(weights, n_threads),), (dense.encode(weights),))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_named(value: float, dtype: str) -> None:
    weights: NDArray[Any] = np.ones((40, 50), dtype=np.float32)
    weights[18, 41] = value
    weights[39, 0] = value
    if dtype == "f16":
        weights = weights.astype(np.float16)
    elif dtype == "bf16":
        weights = (weights.view(np.uint32) >> 16).astype(np.uint16)
    for encode in (
        lambda: _core.quantize_int4(weights, 32, grid_values("uniform")),
        lambda: _core.quantize_int8(weights, 32),
        lambda: _core.quantize_rows_int8(weights, 32),
        lambda: _core.pack_dense(weights),
    ):
        with pytest.raises(NonFiniteWeightError, match="row 18, column 41"):
            encode()


def test_scales_beyond_float16() -> None:
    weights = np.full((20, 64), 1e30, dtype=np.float32)
    with pytest.raises(QuantizationError, match="float16"):
        _core.quantize_int4(weights, 32, grid_values("uniform"))
    with pytest.raises(QuantizationError, match="float16"):
        _core.quantize_int8(weights, 32)
