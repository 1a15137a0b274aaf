"""Scale search: the NumPy definition lessens the error, and C++ gives its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteWeightError, QuantizationError
from llama2q.quant import GRIDS, GROUP_SIZES, grid_values, int4, search
from quant.test_core_quantizers import DTYPES, SHAPES, assert_same_bytes, weights_of
from strategies import SEEDS

ISAS = _core.isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("grid", GRIDS)
@given(
    shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES), seed=SEEDS, weighed=st.booleans()
)
def test_core_gives_the_definition(
    isa: str, group_size: int, grid: str, shape: tuple[int, int], dtype: str, seed: int,
    weighed: bool,
) -> None:  # fmt: skip
    weights, values = weights_of(shape, dtype, seed), grid_values(grid)
    importance = None
    if weighed:
        importance = np.random.default_rng(seed).exponential(1, shape[1]).astype(np.float32)
    assert_same_bytes(
        _core.search_int4(weights, group_size, values, importance, isa, 2),
        search.encode(weights, group_size, values, importance),
    )


def errors(
    weights: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float16], grid: str
) -> NDArray[np.float64]:
    decoded = int4.decode(codes, scales, *weights.shape, grid_values(grid))
    squares: NDArray[np.float64] = np.square(weights.astype(np.float64) - decoded)
    return squares


@pytest.mark.parametrize("grid", GRIDS)
def test_no_group_gets_worse(grid: str) -> None:
    """But for rounding: the scale that rounding to nearest takes is among those tried."""
    weights = np.random.default_rng(1).standard_normal((48, 256), np.float32)
    values = grid_values(grid)
    rounded = errors(weights, *_core.quantize_int4(weights, 64, values), grid)
    found = errors(weights, *_core.search_int4(weights, 64, values), grid)
    before, after = (e.reshape(48, 4, 64).sum(axis=2) for e in (rounded, found))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.92 * before.sum()


def test_importance_moves_the_errors() -> None:
    """Columns that count a hundred times as much get less of the error."""
    weights = np.random.default_rng(2).standard_normal((64, 64), np.float32)
    importance = np.ones(64, np.float32)
    importance[::4] = 100
    grid = grid_values("nonuniform")
    plain = errors(weights, *_core.search_int4(weights, 64, grid), "nonuniform")
    weighed = errors(weights, *_core.search_int4(weights, 64, grid, importance), "nonuniform")
    assert weighed[:, ::4].mean() < 0.9 * plain[:, ::4].mean()
    assert (weighed * importance).sum() < (plain * importance).sum()


def test_exact_groups_stay_exact() -> None:
    """Weights that are grid values times a scale come back, whichever end the extreme is on."""
    grid = grid_values("nonuniform")
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (16, 64))
    codes[:, 0], codes[:8, 1] = 15, 0  # the lowest value is absent from half of the rows
    codes[8:] = np.maximum(codes[8:], 4)
    scales = np.ldexp(1.0, rng.integers(-12, 3, (16, 1))) * rng.choice([-1, 1], (16, 1))
    weights = (grid[codes] * scales).astype(np.float32)
    found = int4.decode(*_core.search_int4(weights, 64, grid), 16, 64, grid)
    np.testing.assert_array_equal(found, weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weights(value: float) -> None:
    weights = np.ones((20, 70), np.float32)
    weights[17, 66] = value
    for encode in (_core.search_int4, search.encode):
        with pytest.raises(NonFiniteWeightError, match="row 17, column 66"):
            encode(weights, 64, grid_values("uniform"))


def test_scales_beyond_float16() -> None:
    weights = np.full((20, 70), 9e6, np.float32)
    for encode in (_core.search_int4, search.encode):
        with pytest.raises(QuantizationError, match="65504"):
            encode(weights, 64, grid_values("nonuniform"))


def test_importance_of_another_width() -> None:
    with pytest.raises(InvalidArgumentError, match=r"importance has shape \(69,\)"):
        _core.search_int4(
            np.ones((20, 70), np.float32), 64, grid_values("uniform"), np.ones(69, np.float32)
        )
