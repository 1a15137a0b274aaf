"""Splitting a matrix into groups of columns and bands of 16 rows, and back."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llama2q.quant.quant_type import BAND_ROWS

_T = TypeVar("_T", bound=np.generic)


def pad(values: NDArray[_T], rows: int, cols: int) -> NDArray[_T]:
    """Copy a matrix into the corner of a zero matrix (rows, cols)."""
    padded = np.zeros((rows, cols), dtype=values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def group(weights: NDArray[np.float32], group_size: int) -> NDArray[np.float32]:
    """Return weights as float32 (rows, n_groups, group_size).

    The last group is completed with copies of its first column, which change neither its minimum,
    nor its maximum, nor whether it is all zero.
    """
    rows, cols = weights.shape
    n_groups = -(-cols // group_size)
    full = np.empty((rows, n_groups * group_size), dtype=np.float32)
    full[:, :cols] = weights
    full[:, cols:] = weights[:, (n_groups - 1) * group_size, None]
    return full.reshape(rows, n_groups, group_size)


def to_bands(matrix: NDArray[_T], width: int) -> NDArray[_T]:
    """Lay a matrix out in bands.

    Parameters
    ----------
    matrix : (rows, cols)
        cols a multiple of `width`; rows are padded with zeros to a multiple of 16.
    width : int
        Consecutive columns of one row that stay together.

    Returns
    -------
    (n_bands, cols / width, 16, width)
        Element [b, j, r, i] is (row 16 b + r, column width * j + i).
    """
    rows, cols = matrix.shape
    n_bands = -(-rows // BAND_ROWS)
    padded = pad(matrix, n_bands * BAND_ROWS, cols)
    banded = padded.reshape(n_bands, BAND_ROWS, cols // width, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(banded)


def from_bands(banded: NDArray[Any]) -> NDArray[Any]:
    """Undo `to_bands`: (n_bands, lines, 16, width) to (16 n_bands, lines * width)."""
    n_bands, lines, height, width = banded.shape
    return banded.transpose(0, 2, 1, 3).reshape(n_bands * height, lines * width)
