"""Matrices as they lie in a file, for the core and for golden files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.container import Value
from llama2q import _core
from llama2q.quant import GRIDS

KINDS = ("int4", "int8", "f32", "f16", "bf16")
"""In the order of csrc/quant/matrix.h's MatrixKind."""


@dataclass(frozen=True)
class Stored:
    """One matrix or embedding table.

    Parameters
    ----------
    kind : {"int4", "int8", "f32", "f16", "bf16"}
    rows, cols, group_size : int
        group_size is 0 for dense kinds.
    codes : array
        Codes or dense values, as the core takes them.
    scales : float16 array or None
    grid : int8, (16,), or None
    """

    kind: str
    rows: int
    cols: int
    group_size: int
    codes: NDArray[Any]
    scales: NDArray[np.float16] | None = None
    grid: NDArray[np.int8] | None = None

    def matrix(self) -> _core.Matrix:
        """Hand it to the core as a weight matrix."""
        if self.scales is None:
            return _core.Matrix.dense(self.codes, self.rows, self.cols)
        if self.grid is None:
            return _core.Matrix.int8(self.codes, self.scales, self.rows, self.cols)
        return _core.Matrix.int4(self.codes, self.scales, self.grid, self.rows, self.cols)

    def embedding(self) -> _core.Embedding:
        """Hand it to the core as the embedding table."""
        if self.scales is None:
            return _core.Embedding.dense(self.codes)
        return _core.Embedding.int8(self.codes, self.scales)

    def fields(self, name: str) -> dict[str, Value]:
        """Return what a golden case holds of it."""
        shape = [KINDS.index(self.kind), self.rows, self.cols, self.group_size]
        fields: dict[str, Value] = {
            f"{name}.shape": np.array(shape, np.int64),
            f"{name}.codes": np.ascontiguousarray(self.codes).reshape(-1).view(np.uint8),
        }
        if self.scales is not None:
            fields[f"{name}.scales"] = self.scales.view(np.uint16)
        if self.grid is not None:
            fields[f"{name}.grid"] = self.grid
        return fields


def random_stored(
    rng: np.random.Generator, rows: int, cols: int, kind: str, group_size: int = 32
) -> Stored:
    """Random codes or values in bands; `kind` may be "int4-uniform". All codes occur, and scales
    that are zero, negative and subnormal.
    """
    n_bands, n_groups = -(-rows // 16), -(-cols // group_size)
    if kind in ("f32", "f16", "bf16"):
        return Stored(kind, rows, cols, 0, _values(rng, (n_bands, cols, 16), kind))
    scales = _scales(rng, (n_bands, n_groups, 16), cols)
    k = n_groups * group_size
    if kind == "int8":
        codes = rng.integers(-127, 128, (n_bands, k // 4, 64)).astype(np.int8)
        return Stored("int8", rows, cols, group_size, codes, scales)
    grid = np.array(GRIDS["uniform" if kind == "int4-uniform" else "nonuniform"], np.int8)
    packed = rng.integers(0, 256, (n_bands, k // 8, 64)).astype(np.uint8)
    return Stored("int4", rows, cols, group_size, packed, scales, grid)


def random_table(
    rng: np.random.Generator, rows: int, cols: int, kind: str, group_size: int = 32
) -> Stored:
    """Return a random embedding table, row by row."""
    if kind in ("f32", "f16", "bf16"):
        return Stored(kind, rows, cols, 0, _values(rng, (rows, cols), kind))
    scales = _scales(rng, (rows, -(-cols // group_size)), cols)
    codes = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
    return Stored("int8", rows, cols, group_size, codes, scales)


def _scales(rng: np.random.Generator, shape: tuple[int, ...], cols: int) -> NDArray[np.float16]:
    scales = (rng.standard_normal(shape) / (64 * np.sqrt(cols))).astype(np.float16)
    flat = scales.reshape(-1)
    flat[::29] = 0
    flat[::31] = np.float16(2.0**-24) * rng.integers(1, 1024, flat[::31].shape)
    return scales


def _values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    values = rng.standard_normal(shape).astype(np.float32)
    flat = values.reshape(-1)
    flat[::37] = 0
    flat[::41] *= np.float32(2.0**-20)
    if kind == "f32":
        return values
    if kind == "f16":
        return values.astype(np.float16)
    return (values.view(np.uint32) >> 16).astype(np.uint16)
