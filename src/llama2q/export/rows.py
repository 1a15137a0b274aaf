"""A matrix of a `.l2q` file row by row, a few MiB at a time."""

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


def quantized_rows(
    file: L2qFile, matrix: MatrixSpec, source: str, *, together: int = 1
) -> Iterator[tuple[NDArray[Any], NDArray[np.float16]]]:
    """Yield the codes and scales of consecutive rows, without padding.

    Parameters
    ----------
    file : L2qFile
    matrix : MatrixSpec
        Of type int4 or int8.
    source : str
        One of `matrix.sources`.
    together : int
        Rows that must not be parted: every chunk but the last holds a multiple of them.

    Yields
    ------
    codes : (n, cols)
        uint8 in [0, 15] for int4, the values themselves as int8 for int8.
    scales : float16, (n, ceil(cols / group_size))
    """
    codes, scales = (_of_source(file, matrix, source, f) for f in (".codes", ".scales"))
    for first, stop in _chunks(matrix, together):
        if matrix.is_table:
            yield codes[first:stop], scales[first:stop]
            continue
        bands = slice(first // BAND_ROWS, -(-stop // BAND_ROWS))
        unpack = int4.unpack if matrix.stored.type == "int4" else _unpack_int8
        yield (
            unpack(codes[bands])[: stop - first, : matrix.cols],
            from_bands(scales[bands, :, :, None])[: stop - first],
        )


def dense_rows(
    file: L2qFile, matrix: MatrixSpec, source: str, *, together: int = 1
) -> Iterator[NDArray[Any]]:
    """Yield consecutive rows of a dense matrix, as `quantized_rows` does: (n, cols), own dtype."""
    values = _of_source(file, matrix, source, "")
    for first, stop in _chunks(matrix, together):
        if matrix.is_table:
            yield values[first:stop]
        else:
            bands = slice(first // BAND_ROWS, -(-stop // BAND_ROWS))
            yield from_bands(values[bands, :, :, None])[: stop - first]


def _of_source(file: L2qFile, matrix: MatrixSpec, source: str, suffix: str) -> NDArray[Any]:
    """View the part of a stored array that belongs to one source, whose bands alternate."""
    return file.array(matrix.name + suffix)[matrix.sources.index(source) :: len(matrix.sources)]


def _chunks(matrix: MatrixSpec, together: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each chunk, at the start of a band, and the row behind it."""
    unit = math.lcm(BAND_ROWS, together)
    n_rows = max(1, _CHUNK_WEIGHTS // (matrix.cols * unit)) * unit
    for first in range(0, matrix.rows, n_rows):
        yield first, min(first + n_rows, matrix.rows)


def _unpack_int8(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    rows: NDArray[np.int8] = from_bands(codes.reshape(*codes.shape[:2], BAND_ROWS, -1))
    return rows
