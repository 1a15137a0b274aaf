"""A matrix of a `.l2q` file row by row, without padding, a few MiB at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.format.layout import MatrixSpec
from llama2q.format.reader import L2qFile
from llama2q.quant import BAND_ROWS, int4
from llama2q.quant.bands import from_bands

_CHUNK_WEIGHTS = 1 << 22
"""Weights that are unpacked at once."""


def code_rows(
    file: L2qFile, matrix: MatrixSpec, source: str, together: int = 1
) -> Iterator[NDArray[Any]]:
    """Yield the codes of consecutive rows.

    Parameters
    ----------
    file : L2qFile
    matrix : MatrixSpec
        Of type int4 or int8.
    source : str
        One of `matrix.sources`.
    together : int
        Rows that must not be parted: every chunk but the last has a multiple of them.

    Yields
    ------
    (n, cols)
        uint8 in [0, 15] for int4, the values themselves as int8 for int8.
    """
    unpack = int4.unpack if matrix.stored.type == "int4" else _unpack_int8
    for codes, n_rows in _chunks(file, matrix, source, ".codes", together):
        rows = codes if matrix.is_table else unpack(codes)
        yield rows[:n_rows, : matrix.cols]


def scale_rows(
    file: L2qFile, matrix: MatrixSpec, source: str, together: int = 1
) -> Iterator[NDArray[np.float16]]:
    """Yield the scales of the same rows as `code_rows`: float16, (n, ceil(cols / group_size))."""
    for scales, n_rows in _chunks(file, matrix, source, ".scales", together):
        yield (scales if matrix.is_table else _unpack_columns(scales))[:n_rows]


def dense_rows(
    file: L2qFile, matrix: MatrixSpec, source: str, together: int = 1
) -> Iterator[NDArray[Any]]:
    """Yield consecutive rows of a dense matrix, cut as `code_rows` does: (n, cols), own dtype."""
    for values, n_rows in _chunks(file, matrix, source, "", together):
        yield (values if matrix.is_table else _unpack_columns(values))[:n_rows]


def release(file: L2qFile, matrix: MatrixSpec) -> None:
    """Give back the pages of a matrix."""
    for tensor in matrix.tensors():
        file.release(tensor.name)


def _chunks(
    file: L2qFile, matrix: MatrixSpec, source: str, suffix: str, together: int
) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield parts of a stored array, as stored, and how many rows of each are no padding."""
    array = file.array(matrix.name + suffix)
    array = array[matrix.sources.index(source) :: len(matrix.sources)]  # its bands alternate
    unit = math.lcm(BAND_ROWS, together)
    step = max(1, _CHUNK_WEIGHTS // (matrix.cols * unit)) * unit
    for first in range(0, matrix.rows, step):
        stop = min(first + step, matrix.rows)
        height = 1 if matrix.is_table else BAND_ROWS
        yield array[first // height : -(-stop // height)], stop - first


def _unpack_int8(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    rows: NDArray[np.int8] = from_bands(codes.reshape(*codes.shape[:2], BAND_ROWS, -1))
    return rows


def _unpack_columns(banded: NDArray[Any]) -> NDArray[Any]:
    """Dense values or scales (n_bands, n, 16) to rows (16 n_bands, n)."""
    return from_bands(banded[..., None])
