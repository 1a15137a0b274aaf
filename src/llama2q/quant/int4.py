"""int4: sixteen grid values times one float16 scale per group of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.quant.bands import from_bands, group, to_bands
from llama2q.quant.bits import check_matrix, round_scale, widen
from llama2q.quant.grids import midpoints
from llama2q.quant.quant_type import GROUP_SIZES, LINE_BYTES, QuantType

INT4 = QuantType(
    name="int4",
    dtype="U8",
    columns_per_line=8,
    group_sizes=GROUP_SIZES,
    has_grid=True,
    has_rows=False,
)


def encode(
    weights: NDArray[Any], group_size: int, grid: NDArray[np.int8]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Round a matrix to the nearest grid values.

    The element of largest magnitude (the negative one of a tie) is put on grid[0]. Codes are
    chosen against the rounded scale; a value halfway between two grid values takes the lower one.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), (rows, cols)
    group_size : int
        Columns per scale.
    grid : int8, (16,)
        Ascending.

    Returns
    -------
    codes : uint8, (n_bands, K / 8, 64)
    scales : float16, (n_bands, K / group_size, 16)

    Raises
    ------
    NonFiniteWeightError
        A weight is NaN or infinite.
    QuantizationError
        A scale exceeds float16's range.
    """
    INT4.check_group_size(group_size)
    check_matrix(weights)
    rows, cols = weights.shape
    x = group(widen(weights), group_size)
    high, low = x.max(axis=2), x.min(axis=2)
    extreme = np.where(-low >= high, low, high)
    scales = round_scale(extreme / np.float32(grid[0]))
    divisor = scales.astype(np.float32)[:, :, None]
    present = divisor != 0
    y = np.where(present, x, 0) / np.where(present, divisor, 1)
    codes = np.zeros(x.shape, dtype=np.uint8)
    for midpoint in midpoints(grid):
        codes += midpoint < y
    codes[~np.broadcast_to(present, codes.shape)] = 0
    flat = codes.reshape(rows, -1)
    flat[:, cols:] = 0
    return pack(flat), to_bands(scales, 1)[:, :, :, 0]


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes in [0, 15], (rows, K), into lines: uint8, (n_bands, K / 8, 64)."""
    banded = to_bands(codes, 8)
    packed = banded[:, :, :, :4] | (banded[:, :, :, 4:] << np.uint8(4))
    return packed.reshape(*packed.shape[:2], LINE_BYTES)


def unpack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `pack`: lines (n_bands, K / 8, 64) to codes (16 n_bands, K)."""
    lines = codes.reshape(*codes.shape[:2], -1, 4)
    both = np.concatenate([lines & np.uint8(15), lines >> np.uint8(4)], axis=3)
    unpacked: NDArray[np.uint8] = from_bands(both)
    return unpacked


def decode(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    rows: int,
    cols: int,
    grid: NDArray[np.int8],
) -> NDArray[np.float32]:
    """Return grid[code] * scale.

    Parameters
    ----------
    codes : uint8, (n_bands, K / 8, 64)
    scales : float16, (n_bands, K / G, 16)
    rows, cols : int
        Shape of the matrix, without padding.
    grid : int8, (16,)

    Returns
    -------
    float32, (rows, cols)
    """
    values = grid.astype(np.float32)[unpack(codes)]
    row_scales = from_bands(scales[:, :, :, None]).astype(np.float32)
    group_size = values.shape[1] // row_scales.shape[1]
    return np.ascontiguousarray((values * np.repeat(row_scales, group_size, axis=1))[:rows, :cols])
