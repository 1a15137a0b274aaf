"""int8: integers in [-127, 127] times one float16 scale per group of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.quant.bands import from_bands, group, pad, to_bands
from llama2q.quant.bits import check_matrix, round_scale, widen
from llama2q.quant.quant_type import GROUP_SIZES, LINE_BYTES, QuantType

INT8 = QuantType(
    name="int8",
    dtype="I8",
    columns_per_line=4,
    group_sizes=GROUP_SIZES,
    has_grid=False,
    has_rows=True,
)
_LIMIT = np.float32(127)


def encode_rows(
    weights: NDArray[Any], group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round a table to the nearest integers, row by row, without padding.

    Codes are chosen against the rounded scale; ties go to the even integer.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), (rows, cols)
    group_size : int
        Columns per scale.

    Returns
    -------
    codes : int8, (rows, cols)
    scales : float16, (rows, ceil(cols / group_size))

    Raises
    ------
    NonFiniteWeightError
        A weight is NaN or infinite.
    QuantizationError
        A scale exceeds float16's range.
    """
    INT8.check_group_size(group_size)
    check_matrix(weights)
    rows, cols = weights.shape
    x = group(widen(weights), group_size)
    scales = round_scale(np.abs(x).max(axis=2) / _LIMIT)
    divisor = scales.astype(np.float32)[:, :, None]
    present = divisor != 0
    y = np.where(present, x, 0) / np.where(present, divisor, 1)
    codes = np.clip(np.rint(y), -_LIMIT, _LIMIT).astype(np.int8)
    return np.ascontiguousarray(codes.reshape(rows, -1)[:, :cols]), scales


def encode(weights: NDArray[Any], group_size: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round a matrix to the nearest integers, in bands; see `encode_rows`.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), (rows, cols)
    group_size : int
        Columns per scale.

    Returns
    -------
    codes : int8, (n_bands, K / 4, 64)
    scales : float16, (n_bands, K / group_size, 16)
    """
    codes, scales = encode_rows(weights, group_size)
    banded = to_bands(pad(codes, codes.shape[0], scales.shape[1] * group_size), 4)
    return banded.reshape(*banded.shape[:2], LINE_BYTES), to_bands(scales, 1)[:, :, :, 0]


def decode_rows(
    codes: NDArray[np.int8], scales: NDArray[np.float16], group_size: int
) -> NDArray[np.float32]:
    """Return code * scale of a row-major table.

    Parameters
    ----------
    codes : int8, (rows, cols)
    scales : float16, (rows, ceil(cols / group_size))
    group_size : int
        Columns per scale.

    Returns
    -------
    float32, (rows, cols)
    """
    wide = np.repeat(scales.astype(np.float32), group_size, axis=1)[:, : codes.shape[1]]
    return codes.astype(np.float32) * wide


def decode(
    codes: NDArray[np.int8], scales: NDArray[np.float16], rows: int, cols: int
) -> NDArray[np.float32]:
    """Return code * scale of a banded matrix.

    Parameters
    ----------
    codes : int8, (n_bands, K / 4, 64)
    scales : float16, (n_bands, K / G, 16)
    rows, cols : int
        Shape of the matrix, without padding.

    Returns
    -------
    float32, (rows, cols)
    """
    flat: NDArray[np.int8] = from_bands(codes.reshape(*codes.shape[:2], -1, 4))
    row_scales: NDArray[np.float16] = from_bands(scales[:, :, :, None])
    group_size = flat.shape[1] // row_scales.shape[1]
    return np.ascontiguousarray(decode_rows(flat, row_scales, group_size)[:rows, :cols])
