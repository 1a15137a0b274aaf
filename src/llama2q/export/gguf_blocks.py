"""Codes and scales in the blocks of 32 elements that GGML's types have.

Source: ggml-org/ggml, `ggml-common.h` (block_q4_0, block_iq4_nl, block_q8_0) and the functions
`dequantize_row_*` of `ggml-quants.c`. A block is a float16 scale d and 32 codes:

- Q4_0: element = (code - 8) * d, our uniform grid; IQ4_NL: element = table[code] * d, our
  nonuniform grid. Byte i holds element i in its low nibble and element i + 16 in its high one.
- Q8_0: element = code * d, code int8.

All are products of the same two numbers as ours, so the weights are equal bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.export.gguf_container import BLOCK


def block_scales(scales: NDArray[np.float16], group_size: int, cols: int) -> NDArray[np.float16]:
    """Repeat the scale of a group for each of its blocks.

    Parameters
    ----------
    scales : float16, (rows, ceil(cols / group_size))
    group_size : {32, 64, 128}
    cols : int
        A multiple of 32.

    Returns
    -------
    float16, (rows, cols / 32)
    """
    return np.repeat(scales, group_size // BLOCK, axis=1)[:, : cols // BLOCK]


def int4_blocks(codes: NDArray[np.uint8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Build the blocks of Q4_0 or IQ4_NL.

    Parameters
    ----------
    codes : uint8 in [0, 15], (rows, cols)
    scales : float16, (rows, cols / 32)

    Returns
    -------
    uint8, (rows, cols / 32, 18)
    """
    halves = codes.reshape(*scales.shape, 2, BLOCK // 2)
    return _with_scales(scales, halves[..., 0, :] | (halves[..., 1, :] << np.uint8(4)))


def int8_blocks(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Build the blocks of Q8_0.

    Parameters
    ----------
    codes : int8, (rows, cols)
    scales : float16, (rows, cols / 32)

    Returns
    -------
    uint8, (rows, cols / 32, 34)
    """
    return _with_scales(scales, codes.reshape(*scales.shape, BLOCK).view(np.uint8))


def _with_scales(scales: NDArray[np.float16], codes: NDArray[Any]) -> NDArray[np.uint8]:
    little = np.ascontiguousarray(scales, dtype="<f2")[..., None].view(np.uint8)
    return np.concatenate([little, codes], axis=-1)
