"""GGUF's Q6_K by round-to-nearest: the type of the output matrix in llama.cpp's Q4_0 files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Q6_K = 14
"""Number of the type."""
SUPER_BLOCK, BLOCK_BYTES = 256, 210
"""Elements and bytes of a block: 128 of low nibbles, 64 of high pairs, 16 int8 scales, an f16."""


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantize rows: value = d * scale * (code - 32), a scale for 16 elements.

    Parameters
    ----------
    values : float32, (rows, cols)
        cols a multiple of 256.

    Returns
    -------
    uint8, (rows, cols / 256, 210)
    """
    rows, cols = values.shape
    groups = values.reshape(rows, cols // SUPER_BLOCK, 16, 16)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    wanted = extreme / np.float32(-32)
    d = (np.abs(wanted).max(-1) / np.float32(127)).astype(np.float16)
    step = d.astype(np.float32)[..., None]
    scales = np.divide(wanted, step, out=np.zeros_like(wanted), where=step > 0)
    scales = np.clip(np.rint(scales), -127, 127).astype(np.int8)
    unit = (step * scales)[..., None]
    codes = np.divide(groups, unit, out=np.zeros_like(groups), where=unit != 0)
    codes = (np.clip(np.rint(codes), -32, 31) + 32).astype(np.uint8)
    # Two halves of 128 elements, each four runs of 32 that share bytes.
    run = codes.reshape(rows, -1, 2, 4, 32)
    low, high = run & 15, run >> 4
    blocks = np.empty((*d.shape, BLOCK_BYTES), np.uint8)
    nibbles = np.stack([low[..., 0, :] | low[..., 2, :] << 4, low[..., 1, :] | low[..., 3, :] << 4])
    blocks[..., :128] = nibbles.transpose(1, 2, 3, 0, 4).reshape(*d.shape, 128)
    pairs = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    blocks[..., 128:192] = pairs.reshape(*d.shape, 64)
    blocks[..., 192:208] = scales.view(np.uint8)
    blocks[..., 208:] = d[..., None].view(np.uint8)
    return blocks


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Undo `encode`: uint8 (rows, cols / 256, 210) to float32 (rows, cols)."""
    rows, n_blocks, _ = blocks.shape
    nibbles = blocks[..., :128].reshape(rows, n_blocks, 2, 2, 32)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=3)
    pairs = blocks[..., 128:192].reshape(rows, n_blocks, 2, 1, 32)
    high = pairs >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low | high << 4).astype(np.float32).reshape(rows, n_blocks, 16, 16) - 32
    scales = blocks[..., 192:208].copy().view(np.int8).astype(np.float32)
    d = blocks[..., 208:].copy().view(np.float16).astype(np.float32)
    values: NDArray[np.float32] = codes * (d * scales)[..., None]
    return values.reshape(rows, n_blocks * SUPER_BLOCK)
