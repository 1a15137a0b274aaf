"""int4 with each group's scale chosen by the squared error that it causes: the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.quant import int4
from llama2q.quant.bands import from_bands, group, to_bands
from llama2q.quant.bits import F16_MAX, round_scale, widen
from llama2q.quant.grids import midpoints

_F32 = NDArray[np.float32]

FACTORS = (1.0, 0.86, 0.93, 1.07)
"""Scales that are tried, relative to that which puts the extreme on the grid's end."""
REFITS = 2
"""How often the least-squares scale of the best codes is tried after them."""


def encode(
    weights: NDArray[Any],
    group_size: int,
    grid: NDArray[np.int8],
    importance: _F32 | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Round a matrix to the nearest grid values, of scales that are searched for.

    Of each group the scale is tried that puts its extreme on the grid's lowest value, and that
    which puts it on the highest, times each of `FACTORS`; then, `REFITS` times, the least-squares
    scale of the grid values that the best one gave. The first of the least errors wins; scales that
    are zero or too large for float16 are passed over. Products and sums are float32, the columns of
    a group in ascending order.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), (rows, cols)
    group_size : int
        Columns per scale.
    grid : int8, (16,)
        Ascending.
    importance : float32, (cols,), optional
        How much the squared error of each column counts; equally by default.

    Returns
    -------
    codes : uint8, (n_bands, K / 8, 64)
    scales : float16, (n_bands, K / group_size, 16)

    Raises
    ------
    NonFiniteWeightError, QuantizationError
        As `llama2q.quant.int4.encode`.
    """
    _, nearest = int4.encode(weights, group_size, grid)  # checks, and the first scales
    rows, cols = weights.shape
    x = group(widen(weights), group_size)
    weighing = None
    if importance is not None:
        weighing = group(importance[None], group_size)[0]
    scales: NDArray[np.float16] = from_bands(nearest[:, :, :, None])[:rows]
    n_in_group = np.minimum(group_size, cols - group_size * np.arange(x.shape[1]))
    for g, n in enumerate(n_in_group):
        scales[:, g] = _search(
            x[:, g, :n], scales[:, g], grid, None if weighing is None else weighing[g, :n]
        )
    divisor = scales.astype(np.float32)[:, :, None]
    present = divisor != 0
    y = np.divide(x, divisor, where=present, out=np.zeros_like(x))
    codes = nearest_codes(y, grid)
    codes[~np.broadcast_to(present, codes.shape)] = 0
    flat = codes.reshape(rows, -1)
    flat[:, cols:] = 0
    return int4.pack(flat), to_bands(scales, 1)[:, :, :, 0]


def nearest_codes(y: _F32, grid: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return the code of the grid value nearest to each y; halfway, that of the lower one."""
    codes = np.zeros(y.shape, np.uint8)
    for midpoint in midpoints(grid):
        codes += midpoint < y
    return codes


def _search(
    x: _F32, first: NDArray[np.float16], grid: NDArray[np.int8], weighing: _F32 | None
) -> NDArray[np.float16]:
    """Choose the scale of one group of each row: x float32 (rows, n), `first` to begin with."""
    high, low = x.max(axis=1), x.min(axis=1)
    extreme = np.where(-low >= high, low, high)
    best, refit = first.copy(), np.zeros(len(x), np.float32)
    least = np.full(len(x), np.inf, np.float32)

    def improve(wanted: _F32) -> None:
        usable = np.abs(wanted) <= F16_MAX
        tried = round_scale(np.where(usable, wanted, np.float32(0)))
        error, product, square = _try(x, tried, grid, weighing)
        better = usable & (tried != 0) & (error < least)
        least[better], best[better] = error[better], tried[better]
        found = np.divide(product, square, where=square > 0, out=np.zeros_like(square))
        refit[better] = found[better]

    for end in (grid[0], grid[15]):
        for factor in FACTORS:
            improve(extreme / np.float32(end) * np.float32(factor))
    for _ in range(REFITS):
        improve(refit.copy())
    return best


def _try(
    x: _F32, scale: NDArray[np.float16], grid: NDArray[np.int8], weighing: _F32 | None
) -> tuple[_F32, _F32, _F32]:
    """Return sum w (x - q s)^2, sum w q x and sum w q^2 of the nearest grid values q."""
    wide = np.where(scale == 0, 1, scale).astype(np.float32)
    values = grid.astype(np.float32)
    q = values[nearest_codes(x * (np.float32(1) / wide)[:, None], grid)]
    rest = x - q * wide[:, None]
    terms = [rest * rest, q * x, q * q]
    if weighing is not None:
        terms = [term * weighing for term in terms]
    error, product, square = (np.add.accumulate(term, axis=1)[:, -1] for term in terms)
    return error, product, square
