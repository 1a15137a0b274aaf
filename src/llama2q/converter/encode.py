"""Turning a matrix of the checkpoint into the stored tensors of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import NonFiniteWeightError, QuantizationError
from llama2q.format.layout import MatrixSpec
from llama2q.format.writer import Chunks
from llama2q.quant import grid_values
from llama2q.quant.bits import check_matrix

_CHUNK_BYTES = 2 * 1024 * 1024


class Quantizers(Protocol):
    """The quantizers of `llama2q._core`, or others that give the same bytes."""

    def quantize_int4(
        self,
        weights: NDArray[Any],
        group_size: int,
        grid: NDArray[np.int8],
        n_threads: int | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes (n_bands, K/8, 64) and scales (n_bands, K/G, 16)."""

    def search_int4(
        self,
        weights: NDArray[Any],
        group_size: int,
        grid: NDArray[np.int8],
        *,
        n_threads: int | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """As `quantize_int4`, with searched scales."""

    def quantize_int8(
        self, weights: NDArray[Any], group_size: int, n_threads: int | None = None
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Codes (n_bands, K/4, 64) and scales (n_bands, K/G, 16)."""

    def quantize_rows_int8(
        self, weights: NDArray[Any], group_size: int, n_threads: int | None = None
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Codes (rows, cols) and scales (rows, ceil(cols / G))."""

    def pack_dense(self, weights: NDArray[Any], n_threads: int | None = None) -> NDArray[Any]:
        """Values (n_bands, cols, 16)."""


def encode_matrix(
    matrix: MatrixSpec,
    read: Callable[[str], NDArray[Any]],
    release: Callable[[str], None],
    quantizers: Quantizers,
    n_threads: int | None = None,
    method: str = "rtn",
) -> list[Chunks]:
    """Encode a matrix by itself; one source at a time is in memory.

    Parameters
    ----------
    matrix : MatrixSpec
    read : callable
        Returns Meta's tensor of a name: float32, float16 or uint16 (bfloat16), (rows, cols).
    release : callable
        Told the name when the tensor is not needed any more.
    quantizers : Quantizers
    n_threads : int, optional
    method : str
        The recipe's. "search" searches the scales of int4; all others round to nearest.

    Returns
    -------
    list of iterables of arrays
        The chunks of each of `matrix.tensors()`.

    Raises
    ------
    NonFiniteWeightError, QuantizationError
        With the tensor's name.
    """
    if matrix.is_table and matrix.stored.kind.is_dense:
        (name,) = matrix.sources
        return [_dense_rows(name, read(name), release)]
    encoded = []
    for name in matrix.sources:
        encoded.append(_named(name, matrix, read(name), quantizers, method, n_threads))
        release(name)
    return alternating(encoded)


def alternating(encoded: Sequence[tuple[NDArray[Any], ...]]) -> list[Chunks]:
    """Return the chunks of each stored tensor, the bands of the sources alternating."""
    return [_alternating(arrays) for arrays in zip(*encoded, strict=True)]


def _named(
    name: str,
    matrix: MatrixSpec,
    weights: NDArray[Any],
    quantizers: Quantizers,
    method: str,
    n_threads: int | None,
) -> tuple[NDArray[Any], ...]:
    try:
        return encode_weights(matrix, weights, quantizers, method, n_threads)
    except (NonFiniteWeightError, QuantizationError) as error:
        raise type(error)(f"{name}: {error}") from error


def encode_weights(
    matrix: MatrixSpec,
    weights: NDArray[Any],
    quantizers: Quantizers,
    method: str,
    n_threads: int | None,
) -> tuple[NDArray[Any], ...]:
    """Encode rows of one source of a matrix as the matrix is stored; see `encode_matrix`.

    Parameters
    ----------
    matrix : MatrixSpec
    weights : float32, float16 or uint16 (bfloat16), (rows, cols)
    quantizers : Quantizers
    method : str
    n_threads : int or None

    Returns
    -------
    tuple of arrays
        Codes and scales, or values in bands.
    """
    stored = matrix.stored
    if stored.group_size is None:
        return (quantizers.pack_dense(weights, n_threads),)
    if stored.grid is not None:
        grid = grid_values(stored.grid)
        if method == "search":
            return quantizers.search_int4(weights, stored.group_size, grid, n_threads=n_threads)
        return quantizers.quantize_int4(weights, stored.group_size, grid, n_threads)
    if matrix.is_table:
        return quantizers.quantize_rows_int8(weights, stored.group_size, n_threads)
    return quantizers.quantize_int8(weights, stored.group_size, n_threads)


def _dense_rows(
    name: str, weights: NDArray[Any], release: Callable[[str], None]
) -> Iterator[NDArray[Any]]:
    for start, rows in _slices(weights):
        try:
            check_matrix(rows)
        except NonFiniteWeightError as error:
            raise NonFiniteWeightError(f"{name}, from row {start}: {error}") from error
        yield rows
    release(name)


def _alternating(arrays: tuple[NDArray[Any], ...]) -> Iterator[NDArray[Any]]:
    """Yield band 0 of each array, band 1 of each, and so on, a few MiB at a time."""
    if len(arrays) == 1:
        yield from arrays
        return
    for start, first in _slices(arrays[0]):
        yield np.stack([array[start : start + len(first)] for array in arrays], axis=1)


def _slices(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]
