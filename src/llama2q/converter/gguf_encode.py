"""Turning the matrices of a GGUF file into the stored tensors of ours, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.converter.encode import Quantizers, encode_weights
from llama2q.converter.gguf_blocks import dense_rows, dequantize, move_int4, move_int8
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_types import GgmlType
from llama2q.errors import NonFiniteWeightError, QuantizationError
from llama2q.format.layout import MatrixSpec, matrix_spec
from llama2q.format.recipe import Recipe
from llama2q.format.writer import Chunks
from llama2q.quant import grid_values, int4, int8
from llama2q.quant.bands import to_bands
from llama2q.quant.bits import check_matrix, widen
from llama2q.quant.quant_type import BAND_ROWS, LINE_BYTES

CHUNK_WEIGHTS = 1 << 18
"""About how many weights of a tensor a thread takes at a time."""

Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """How a tensor of a GGUF file came into ours.

    Attributes
    ----------
    name : str
        Meta's.
    source, stored : str
        Its type there and here, such as "Q6_K" and "int8/32".
    exact : bool
        Whether its values are the same.
    error : float or None
        Root mean square of the difference over that of the values; 0 where they are the same, None
        where an earlier, interrupted conversion wrote it.
    """

    name: str
    source: str
    stored: str
    exact: bool
    error: float | None


class GgufEncoder:
    """Encodes the matrices of a file and keeps account of what that changes.

    Parameters
    ----------
    checkpoint : GgufCheckpoint
    quantizers : Quantizers
    n_threads : int or None
        Threads; all physical cores by default. The bytes do not depend on it.
    """

    def __init__(
        self, checkpoint: GgufCheckpoint, quantizers: Quantizers, n_threads: int | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._quantizers = quantizers
        self._n_threads = n_threads or _core.default_threads()
        self._errors: dict[str, float] = {}

    def encode(self, matrix: MatrixSpec) -> list[Chunks]:
        """Encode a matrix; see `encode_matrix`.

        Raises
        ------
        NonFiniteWeightError, QuantizationError
            With the tensor's name.
        """
        encoded = [self._source(matrix, name) for name in matrix.sources]
        chunks: list[Chunks] = [
            _alternating(arrays) if len(arrays) > 1 else list(arrays[0])
            for arrays in zip(*encoded, strict=True)
        ]
        if matrix.is_table and matrix.stored.kind.is_dense:
            return [self._released(matrix.name, chunks[0])]
        for name in matrix.sources:
            self._checkpoint.release(name)
        return chunks

    def reports(self, recipe: Recipe) -> tuple[TensorReport, ...]:
        """List all tensors, in the order of execution."""
        config = self._checkpoint.config
        stored = {
            source: entry
            for name, entry in recipe.tensors.items()
            for source in matrix_spec(config, recipe, name).sources
        }
        reports = []
        for name in self._checkpoint.shapes:
            kind = self._checkpoint.tensor(name).type
            exact = name not in stored or stored[name] in kind.kept
            reports.append(
                TensorReport(
                    name=name,
                    source=kind.name,
                    stored=str(stored.get(name, "f32")),
                    exact=exact,
                    error=0.0 if exact else self._errors.get(name),
                )
            )
        return tuple(reports)

    def _released(self, name: str, views: Chunks) -> Iterator[NDArray[Any]]:
        """Yield views of a tensor, then give its pages back."""
        yield from views
        self._checkpoint.release(name)

    def _source(self, matrix: MatrixSpec, name: str) -> list[tuple[NDArray[Any], ...]]:
        """Return the chunks of each stored array of one source."""
        tensor = self._checkpoint.tensor(name)
        rows = tensor.rows()
        step = max(1, CHUNK_WEIGHTS // matrix.cols // BAND_ROWS) * BAND_ROWS

        def encode(start: int) -> tuple[Arrays, float, float]:
            try:
                return encode_rows(
                    matrix, rows[start : start + step], tensor.type, self._quantizers
                )
            except (NonFiniteWeightError, QuantizationError) as error:
                raise type(error)(f"{name}, from row {start}: {error}") from error

        with ThreadPoolExecutor(self._n_threads, "gguf") as pool:
            parts = list(pool.map(encode, range(0, matrix.rows, step)))
        if matrix.stored not in tensor.type.kept:
            squares = sum(part[2] for part in parts)
            error = sum(part[1] for part in parts)
            self._errors[name] = math.sqrt(error / squares) if squares else 0.0
        return list(zip(*(part[0] for part in parts), strict=True))


def encode_rows(
    matrix: MatrixSpec, rows: NDArray[np.uint8], kind: GgmlType, quantizers: Quantizers
) -> tuple[Arrays, float, float]:
    """Encode some rows of one source of a matrix.

    Parameters
    ----------
    matrix : MatrixSpec
    rows : uint8, (rows, bytes of a row)
        A multiple of 16 rows, unless they are the last ones.
    kind : GgmlType
        Of the source.
    quantizers : Quantizers

    Returns
    -------
    tuple of arrays
        Codes and scales, or values.
    float, float
        Sums of the squared errors and of the squared values; zeros where the values are the same.
    """
    stored = matrix.stored
    if stored in kind.kept and not stored.kind.is_dense:
        return _moved(matrix, rows, kind), 0.0, 0.0
    weights: NDArray[Any] = (
        dequantize(rows, kind) if kind.dense is None else dense_rows(rows, kind.dense)
    )
    if stored.kind.is_dense:
        weights = widen(weights) if stored.type == "f32" else weights
        if not matrix.is_table:
            return encode_weights(matrix, weights, quantizers, "rtn", 1), 0.0, 0.0
        check_matrix(weights)
        return (weights,), 0.0, 0.0
    arrays = encode_weights(matrix, weights, quantizers, "rtn", 1)
    values = widen(weights)
    difference = _decoded(matrix, arrays, values.shape) - values
    return arrays, _sum_of_squares(difference), _sum_of_squares(values)


def _moved(matrix: MatrixSpec, rows: NDArray[np.uint8], kind: GgmlType) -> Arrays:
    if matrix.stored.type == "int4":
        return move_int4(rows)
    codes, scales = move_int8(rows, kind)
    if matrix.is_table:
        return codes, scales
    banded = to_bands(codes, 4)
    return banded.reshape(*banded.shape[:2], LINE_BYTES), to_bands(scales, 1)[:, :, :, 0]


def _decoded(matrix: MatrixSpec, arrays: Arrays, shape: tuple[int, ...]) -> NDArray[np.float32]:
    codes, scales = arrays
    stored = matrix.stored
    if stored.grid is not None:
        return int4.decode(codes, scales, shape[0], shape[1], grid_values(stored.grid))
    if matrix.is_table:
        return int8.decode_rows(codes, scales, stored.group_size or 0)
    return int8.decode(codes, scales, shape[0], shape[1])


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64))


def _alternating(arrays: tuple[tuple[NDArray[Any], ...], ...]) -> Iterator[NDArray[Any]]:
    """Yield band 0 of each source, band 1 of each, and so on."""
    for parts in zip(*arrays, strict=True):
        yield np.stack(parts, axis=1)
