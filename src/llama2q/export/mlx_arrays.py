"""Codes and scales as MLX's affine quantization has them: element = scale * code + bias.

Source: ml-explore/mlx, documentation of `mlx.core.quantize` and `mlx.core.dequantize`. Codes are
unsigned; those of consecutive columns lie in 32-bit words, the first in the lowest bits. Our
element (code - 8) * s of the uniform grid, or code * s with int8, is one with bias -8 s or -128 s,
which float16 holds exactly: the factor is a power of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import ExportError
from llama2q.quant.bits import F16_MAX

INT4_ZERO, INT8_ZERO = 8, 128
"""The codes that stand for zero."""


def pack_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Codes uint8 in [0, 15], (rows, cols), to uint32, (rows, cols / 8)."""
    pairs = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(pairs).view("<u4")


def pack_int8(codes: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Codes int8, (rows, cols), to uint32, (rows, cols / 4)."""
    # Adding 128 modulo 256 turns the sign bit over.
    return (np.ascontiguousarray(codes).view(np.uint8) ^ np.uint8(INT8_ZERO)).view("<u4")


def biases(scales: NDArray[np.float16], zero: int) -> NDArray[np.float16]:
    """Return -zero * scale, exactly: float16, any shape.

    Raises
    ------
    ExportError
        It is beyond float16's range.
    """
    wide = scales.astype(np.float32) * np.float32(-zero)
    largest = float(np.abs(wide).max())
    if largest > F16_MAX:
        raise ExportError(
            f"the scale {largest / zero:g} needs the bias {largest:g}; MLX's are float16, up to "
            f"{F16_MAX:.0f}"
        )
    return wide.astype(np.float16)


def half_split(rows: NDArray[np.generic], head_dim: int) -> NDArray[np.generic]:
    """Bring the rows of q or k from Meta's order to Hugging Face's, which MLX's models have.

    Meta rotates neighbours (2i with 2i + 1, "interleaved"), Hugging Face the halves of a head (i
    with i + head_dim / 2, "half-split").

    Parameters
    ----------
    rows : (n_heads * head_dim, n)
        Any number of whole heads.
    head_dim : int

    Returns
    -------
    same dtype and shape
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
