"""Error feedback: each code is the nearest for what the columns after it have left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2q import _core
from llama2q.errors import InvalidArgumentError, NonFiniteWeightError, QuantizationError
from llama2q.quant import GRIDS, grid_values, int4
from strategies import assert_same_bits

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ISAS = _core.isas()
# (rows, cols, group_size): one panel and several, a last band and a last group that are partial.
SHAPES = [(1, 1, 32), (20, 40, 32), (37, 172, 64), (200, 96, 32), (400, 300, 128)]


@dataclass(frozen=True)
class Problem:
    """Weights and the second moments of inputs, with and without what the outputs lack."""

    weights: F32
    h: F64
    factors: F32
    importance: F32
    correction: F32

    @classmethod
    def random(cls, rows: int, cols: int, seed: int = 0) -> Problem:
        rng = np.random.default_rng(seed)
        mixed = np.eye(cols) + rng.standard_normal((cols, cols)) / (2 * np.sqrt(cols))
        inputs = rng.standard_normal((3 * cols + 40, cols)) @ mixed
        h = np.zeros((cols, cols), np.float32)
        _core.add_gram(h, inputs.astype(np.float32))
        np.fill_diagonal(h, h.diagonal() + 0.01 * h.diagonal().mean())
        wide = np.tril(h).astype(np.float64) + np.tril(h, -1).T
        importance = h.diagonal().copy()
        assert _core.ldl(h) == -1
        _core.mirror_lower(h)
        weights = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(0.05)
        correction = wide @ (rng.standard_normal((cols, rows)) * 0.01)
        return cls(weights, wide, h, importance, correction.astype(np.float32))

    def feed_back(
        self,
        group_size: int,
        grid: str,
        corrected: bool,
        isa: str | None = None,
        n_threads: int | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        correction = self.correction if corrected else None
        return _core.feed_back_int4(
            self.weights, group_size, grid_values(grid), self.factors, self.importance,
            correction, isa, n_threads,
        )  # fmt: skip

    def target(self, corrected: bool) -> F64:
        """What the rounded weights should be, were they not rounded."""
        shift = np.linalg.solve(self.h, self.correction).T if corrected else 0
        return self.weights.astype(np.float64) + shift

    def loss(self, values: F32, corrected: bool) -> float:
        error = self.target(corrected) - values
        return float(np.einsum("ij,jk,ik->", error, self.h, error))


def decode(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], shape: tuple[int, int], grid: str
) -> tuple[F32, F64]:
    """Return the values, and the scale of each of them."""
    rows, cols = shape
    values = int4.decode(codes, scales, rows, cols, grid_values(grid))
    by_row = scales.astype(np.float64).transpose(0, 2, 1).reshape(-1, scales.shape[1])[:rows]
    group_size = codes.shape[1] * 8 // scales.shape[1]
    return values, np.repeat(by_row, group_size, axis=1)[:, :cols]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
def test_every_code_is_the_nearest(
    rows: int, cols: int, group_size: int, grid: str, corrected: bool
) -> None:
    """With float64 factors of our own: w + v + sum over i > j of e[i] L[i, j], in units of scales.

    The factors are float32 and so are the sums: targets agree to 1e-4 of a scale here, and a code
    may be the second nearest only where the target is that near to halfway.
    """
    problem = Problem.random(rows, cols)
    values, scale = decode(
        *problem.feed_back(group_size, grid, corrected), problem.weights.shape, grid
    )
    root = np.linalg.cholesky(problem.h)
    lower = root / root.diagonal()
    v = np.zeros((rows, cols))
    if corrected:
        v = (np.linalg.solve(lower, problem.correction) / root.diagonal()[:, None] ** 2).T
    error = problem.weights.astype(np.float64) - values
    targets = problem.weights + v + error @ np.tril(lower, -1)
    present = scale != 0
    units = np.where(present, targets / np.where(present, scale, 1), 0)
    found = np.where(present, np.rint(values / np.where(present, scale, 1)), 0)
    distances = np.abs(units[:, :, None] - grid_values(grid).astype(np.float64))
    assert present.mean() > 0.99
    excess = np.abs(units - found) - distances.min(axis=2)
    assert excess[present].max() <= 2e-4 * np.abs(units).max()


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
def test_same_bits(rows: int, cols: int, group_size: int, corrected: bool) -> None:
    """On every instruction set, for any number of threads."""
    problem = Problem.random(rows, cols, 1)
    codes, scales = problem.feed_back(group_size, "nonuniform", corrected, "scalar", 1)
    for isa in ISAS:
        for n_threads in (1, 2, 3):
            found = problem.feed_back(group_size, "nonuniform", corrected, isa, n_threads)
            assert_same_bits(found[0], codes)
            assert_same_bits(found[1], scales)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_change_less(grid: str, corrected: bool) -> None:
    """Than with the search that weighs by the same inputs: the loss is that of the outputs."""
    problem = Problem.random(256, 384, 2)
    shape, values = problem.weights.shape, grid_values(grid)
    weighed = _core.search_int4(problem.weights, 64, values, problem.importance)
    fed_back = problem.feed_back(64, grid, corrected)
    before = problem.loss(decode(*weighed, shape, grid)[0], corrected)
    assert problem.loss(decode(*fed_back, shape, grid)[0], corrected) < 0.8 * before


def test_a_correction_is_made() -> None:
    """Against the same feedback without it."""
    problem = Problem.random(64, 128, 3)

    def loss(given: bool) -> float:
        rounded = problem.feed_back(32, "nonuniform", given)
        return problem.loss(decode(*rounded, (64, 128), "nonuniform")[0], corrected=True)

    assert loss(True) < 0.7 * loss(False)


def test_zero_rows_and_columns() -> None:
    """Rows of zeros get scale 0; a column that nothing reaches is rounded by itself."""
    problem = Problem.random(33, 70, 4)
    problem.weights[5] = 0
    problem.weights[:, 64:] = 0
    codes, scales = problem.feed_back(64, "uniform", corrected=False)
    values, scale = decode(codes, scales, (33, 70), "uniform")
    assert (scale[5] == 0).all()
    assert (values[5] == 0).all()
    assert (scale[:, 64:] == 0).all()


def test_weights_that_are_refused() -> None:
    problem = Problem.random(20, 40, 5)
    problem.weights[3, 7] = np.inf
    with pytest.raises(NonFiniteWeightError, match="row 3, column"):
        problem.feed_back(32, "uniform", corrected=False)
    problem.weights[3, 7] = 3e7
    with pytest.raises(QuantizationError, match="row 3, column 0"):
        problem.feed_back(32, "uniform", corrected=False)


def test_corrections_beyond_float32() -> None:
    """The weights are sound; the message does not say that they are not finite."""
    problem = Problem.random(20, 40, 5)
    problem.correction[7, 3] = np.inf
    with pytest.raises(QuantizationError, match="what errors and corrections make of row 3"):
        problem.feed_back(32, "uniform", corrected=True)


def test_shapes_that_are_refused() -> None:
    problem = Problem.random(20, 40, 6)
    grid = grid_values("uniform")
    good = (problem.factors, problem.importance, problem.correction)
    for at, name in enumerate(("factors", "importance", "correction")):
        arrays = list(good)
        arrays[at] = np.ascontiguousarray(arrays[at][1:])
        with pytest.raises(InvalidArgumentError, match=f"{name} has shape"):
            _core.feed_back_int4(problem.weights, 32, grid, *arrays)
