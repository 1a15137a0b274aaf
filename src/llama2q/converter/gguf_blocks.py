"""The blocks of GGML's types: codes and scales moved into our layout, or values in float32.

Q4_0, IQ4_NL and Q8_0 have blocks of 32 weights of a row: a float16 scale, then the codes. Byte i
(i < 16) of 4-bit codes holds element i in its low nibble and element 16 + i in its high one.
Source: ggml-org/ggml, `ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.gguf_types import GgmlType
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import (
    MissingPackageError,
    NonFiniteWeightError,
    QuantizationError,
    UnsupportedModelError,
)
from llama2q.quant import grid_values
from llama2q.quant.bands import to_bands
from llama2q.quant.bits import nonfinite, widen
from llama2q.quant.quant_type import LINE_BYTES

_SCALE_BYTES = 2


def move_int4(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Move codes and scales of Q4_0 or IQ4_NL, bits unchanged.

    Parameters
    ----------
    rows : uint8, (rows, bytes of a row)

    Returns
    -------
    codes : uint8, (n_bands, K / 8, 64)
    scales : float16, (n_bands, K / 32, 16)

    Raises
    ------
    NonFiniteWeightError
        A scale is NaN or infinite.
    """
    scales, codes = _split(rows, LINE_BYTES // 4 + _SCALE_BYTES)
    # A block is four lines of 8 columns: two of low nibbles, then two of high ones.
    quads = codes.reshape(*scales.shape, 2, 2, 4)
    first, second = quads[:, :, :, 0], quads[:, :, :, 1]
    low = (first & np.uint8(0x0F)) | (second << np.uint8(4))
    high = (first >> np.uint8(4)) | (second & np.uint8(0xF0))
    lines = to_bands(np.concatenate([low, high], axis=2).reshape(len(rows), -1), 4)
    return lines.reshape(*lines.shape[:2], LINE_BYTES), to_bands(scales, 1)[:, :, :, 0]


def move_int8(
    rows: NDArray[np.uint8], kind: GgmlType
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Move scales, and codes of Q8_0, bits unchanged; those of Q4_0 and IQ4_NL as their values.

    Parameters
    ----------
    rows : uint8, (rows, bytes of a row)
    kind : GgmlType

    Returns
    -------
    codes : int8, (rows, cols)
    scales : float16, (rows, cols / 32)

    Raises
    ------
    NonFiniteWeightError
        A scale is NaN or infinite.
    QuantizationError
        A code is -128, which our format does not hold.
    """
    codes, scales = _codes(rows, kind)
    if (codes == -128).any():
        row, col = (int(i) for i in np.argwhere(codes == -128)[0])
        raise QuantizationError(
            f"row {row}, column {col} has the code -128; a .l2q file holds -127 to 127. Round "
            "anew, with --quant int8 --group-size 64"
        )
    return codes, scales


def dense_rows(rows: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """View plain numbers: float32, float16 or uint16 (the bits of bf16), (rows, cols)."""
    return rows.reshape(-1).view(NUMPY_DTYPES[dtype]).reshape(len(rows), -1)


def dequantize(rows: NDArray[np.uint8], kind: GgmlType) -> NDArray[np.float32]:
    """Return the values of a type's blocks.

    Parameters
    ----------
    rows : uint8, (rows, bytes of a row)
    kind : GgmlType

    Returns
    -------
    float32, (rows, cols)

    Raises
    ------
    MissingPackageError
        The package gguf is needed for this type.
    UnsupportedModelError
        The package does not know the type.
    NonFiniteWeightError
        A scale is NaN or infinite.
    """
    if kind.dense is not None:
        return widen(dense_rows(rows, kind.dense))
    if kind.kept:
        codes, scales = _codes(rows, kind)
        values = codes.reshape(*scales.shape, kind.block).astype(np.float32)
        values *= scales.astype(np.float32)[:, :, None]
        return values.reshape(codes.shape)
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise MissingPackageError(
            f"weights of the type {kind.name} are read with the package gguf, which is not "
            "installed: pip install 'llama2q[gguf]'"
        ) from error
    try:
        with np.errstate(all="ignore"):  # what is not finite is found and named by the quantizers
            return quants.dequantize(rows, GGMLQuantizationType(kind.number))
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"the package gguf that is installed does not read weights of the type {kind.name}: "
            "pip install -U gguf, or take a file of another quantization"
        ) from error


def require_dequantizer(kind: GgmlType) -> None:
    """Raise what `dequantize` would raise for a type, before there are weights."""
    if not kind.kept:
        dequantize(np.zeros((1, kind.block_bytes), np.uint8), kind)


def _codes(rows: NDArray[np.uint8], kind: GgmlType) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return integers (rows, cols), -128 included, and scales (rows, cols / 32)."""
    scales, stored = _split(rows, kind.block_bytes)
    grid = kind.kept[0].grid
    if grid is None:
        codes = np.ascontiguousarray(stored).view(np.int8)
    else:
        nibbles = np.concatenate([stored & np.uint8(0x0F), stored >> np.uint8(4)], axis=2)
        codes = grid_values(grid)[nibbles]
    return codes.reshape(len(rows), -1), scales


def _split(
    rows: NDArray[np.uint8], block_bytes: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return scales (rows, blocks) and stored codes (rows, blocks, bytes)."""
    blocks = rows.reshape(len(rows), -1, block_bytes)
    scales: NDArray[Any] = np.ascontiguousarray(blocks[:, :, :_SCALE_BYTES]).view("<f2")[:, :, 0]
    if nonfinite(scales).any():
        row, block = (int(i) for i in np.argwhere(nonfinite(scales))[0])
        raise NonFiniteWeightError(
            f"row {row}, block {block} of 32 columns has the scale {float(scales[row, block])}; "
            "expected a finite number"
        )
    return scales, blocks[:, :, _SCALE_BYTES:]
