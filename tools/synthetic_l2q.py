"""Random weights in any shape, written as a `.l2q` file without a checkpoint in between.

`make_synthetic.py` is the command; this module draws codes and scales as the file stores them, so
that a 7B model takes seconds and a few MiB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.format import Recipe, Writer
from llama2q.format.layout import MatrixSpec, TensorSpec
from llama2q.format.metadata import Metadata
from llama2q.format.writer import Chunks, write_model
from llama2q.quant import BAND_ROWS, grid_values

WEIGHT_STD = 0.02
_CHUNK_BYTES = 8 * 1024 * 1024


def write_l2q(
    config: ModelConfig,
    tokenizer_bytes: bytes,
    path: str | Path,
    quant: str = "int4",
    group_size: int = 64,
    grid: str = "nonuniform",
    seed: int = 0,
    *,
    dtype: str = "bf16",
    template: str = "base",
    overwrite: bool = True,
) -> str:
    """Write a model of random weights; the same arguments give the same bytes anywhere.

    Parameters
    ----------
    config : ModelConfig
    tokenizer_bytes : bytes
        The SentencePiece model.
    path : str or Path
        Replaced if it exists.
    quant, group_size, grid
        As for `llama2q.convert`.
    seed : int
    dtype : {"f32", "f16", "bf16"}
        Type of the weights for quant="none".
    template : {"base", "llama2-chat"}
    overwrite : bool
        Whether an existing file is replaced.

    Returns
    -------
    str
        The model id.
    """
    recipe = Recipe.for_model(config, quant, group_size=group_size, grid=grid, dtype=dtype)
    metadata = Metadata(config=config, recipe=recipe, template=template)
    source = RandomTensors(seed)
    with Writer(path, metadata, tokenizer_bytes, overwrite=overwrite) as writer:
        write_model(writer, source.matrix, source.norm)
        return writer.finish()


class RandomTensors:
    """Draws stored tensors from one stream of random 64-bit words."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.Generator(np.random.SFC64(seed))
        self._tables: dict[str, NDArray[Any]] = {}

    def norm(self, spec: TensorSpec) -> NDArray[np.float32]:
        """Return norm weights, multiples of 1/512 in [0.75, 1.25)."""
        steps = self._bytes(spec.shape[0]).astype(np.float32)
        return np.float32(0.75) + steps / np.float32(512)

    def matrix(self, matrix: MatrixSpec) -> list[Chunks]:
        """Return the chunks of each stored tensor of a matrix."""
        if matrix.stored.kind.is_dense:
            return [self._dense(matrix)]
        return [self._codes(matrix), self._scales(matrix)]

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        words = self._words.integers(0, 2**64, -(-count // 8), dtype=np.uint64)
        return words.view(np.uint8)[:count]

    def _codes(self, matrix: MatrixSpec) -> Iterator[NDArray[Any]]:
        shape = matrix.tensors()[0].shape
        for start, count in _steps(shape, 1):
            codes = self._bytes(count * shape[1] * int(np.prod(shape[2:], dtype=np.int64)))
            if matrix.stored.type == "int8":
                codes = np.where(codes == 128, np.uint8(129), codes)
            codes = codes.reshape(count, *shape[1:])
            if not matrix.is_table:
                _clear_rows(codes.reshape(count, shape[1], BAND_ROWS, 4), start, shape[0], matrix)
                _clear_columns(codes, matrix)
            yield codes.view(np.int8) if matrix.stored.type == "int8" else codes

    def _scales(self, matrix: MatrixSpec) -> Iterator[NDArray[Any]]:
        """Yield scales, half of them negative, that give uniform codes the wanted std.

        Magnitudes lie between 3/4 and 5/4 of the middle; both signs make the mean weight zero.
        """
        shape = matrix.tensors()[1].shape
        name = matrix.stored.grid
        grid = np.arange(-127, 128) if name is None else grid_values(name)
        middle = WEIGHT_STD / float(np.sqrt(np.mean(grid.astype(np.float64) ** 2)))
        magnitudes = middle * (0.75 + np.arange(128) / 256)
        table = np.concatenate([magnitudes, -magnitudes]).astype(np.float16)
        for start, count in _steps(shape, 2):
            scales = table[self._bytes(count * int(np.prod(shape[1:], dtype=np.int64)))]
            scales = scales.reshape(count, *shape[1:])
            if not matrix.is_table:
                _clear_rows(scales[..., None], start, shape[0], matrix)
            yield scales

    def _dense(self, matrix: MatrixSpec) -> Iterator[NDArray[Any]]:
        (spec,) = matrix.tensors()
        table = self._normal_table(spec.dtype)
        for start, count in _steps(spec.shape, table.itemsize):
            size = count * int(np.prod(spec.shape[1:], dtype=np.int64))
            values = table[self._bytes(2 * size).view("<u2")].reshape(count, *spec.shape[1:])
            if not matrix.is_table:
                _clear_rows(values[..., None], start, spec.shape[0], matrix)
            yield values

    def _normal_table(self, dtype: str) -> NDArray[Any]:
        """Return 65536 draws from a normal distribution, to be indexed by random 16-bit words."""
        if dtype not in self._tables:
            # The sum of 12 uniform numbers has variance 1; no libm is involved.
            uniform = self._bytes(65536 * 24).view("<u2").reshape(65536, 12)
            centred = uniform.sum(axis=1, dtype=np.int64) - 6 * 65536
            normal = centred.astype(np.float32) / np.float32(65536)
            values = normal * np.float32(WEIGHT_STD)
            if dtype == "F16":
                self._tables[dtype] = values.astype(np.float16)
            elif dtype == "BF16":
                self._tables[dtype] = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            else:
                self._tables[dtype] = values
        return self._tables[dtype]


def _steps(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield (first index, count) along axis 0, a few MiB each and a multiple of two bands."""
    row_bytes = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = max(2, _CHUNK_BYTES // row_bytes // 2 * 2)
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


def _clear_rows(chunk: NDArray[Any], start: int, n_bands: int, matrix: MatrixSpec) -> None:
    """Zero the padded rows of (bands, ..., 16, n), whose first band is `start` of `n_bands`."""
    tail = matrix.rows % BAND_ROWS
    first = n_bands - len(matrix.sources)  # the last band of each source comes last
    if tail and start + len(chunk) > first:
        chunk[max(0, first - start) :, :, tail:] = 0


def _clear_columns(codes: NDArray[np.uint8], matrix: MatrixSpec) -> None:
    """Zero the padded columns of lines of codes (bands, lines, 64)."""
    per_line = matrix.stored.kind.columns_per_line
    line, rest = divmod(matrix.cols, per_line)
    if line == codes.shape[1]:
        return
    codes[:, line + (rest > 0) :] = 0
    parts = codes[:, line].reshape(len(codes), BAND_ROWS, 4)
    for column in range(rest, per_line) if rest else ():
        if per_line == 4:
            parts[:, :, column] = 0
        elif column < 4:
            parts[:, :, column] &= 0xF0
        else:
            parts[:, :, column - 4] &= 0x0F
    codes[:, line] = parts.reshape(len(codes), -1)
