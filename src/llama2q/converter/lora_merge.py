"""Adding a low-rank product to a matrix, with the same bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import InvalidArgumentError, QuantizationError
from llama2q.quant.bits import F16_MAX, nonfinite, widen

_PANEL_BYTES = 1 << 18
"""Of float64: two panels stay in a core's cache."""

Factors = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(rows, rank) and (rank, cols)."""


def merge(
    weights: NDArray[Any], factors: Factors | None, dtype: str, n_threads: int
) -> NDArray[Any]:
    """Return weights + left @ right in a dtype.

    An element is summed in float64, the terms of the product first, by ascending rank, then the
    weight; it is rounded to float32, and from there to the dtype, to nearest even. No library
    chooses the order, so the bits depend on neither machine nor threads.

    Parameters
    ----------
    weights : float32, float16 or uint16 (the bits of bf16), (rows, cols) or (n,)
    factors : pair of float64 arrays, or None
        (rows, rank) and (rank, cols); None adds nothing.
    dtype : {"f32", "f16", "bf16"}
        Of the result.
    n_threads : int

    Returns
    -------
    float32, float16 or uint16, of the shape of `weights`
        Read-only.

    Raises
    ------
    QuantizationError
        An element is beyond float16.
    """
    merged = np.empty(weights.shape, NUMPY_DTYPES[dtype])
    step = max(1, _PANEL_BYTES // (8 * max(1, weights[0].size)))

    def panel(start: int) -> None:
        rows = slice(start, start + step)
        total = widen(weights[rows])
        if factors is not None:
            total = _sum(total, factors[0][rows], factors[1])
        merged[rows] = narrow(total, dtype)

    _for_each(panel, range(0, len(weights), step), n_threads)
    merged.flags.writeable = False
    return merged


def merging_bytes(shape: tuple[int, ...], rank: int, dtype: str, n_threads: int) -> int:
    """Return the most memory that `merge` and its factors take, in bytes.

    The result; the factors in float64, four times while they are made (widened, scaled, in another
    order, for an embedding table transposed); six arrays of a panel in each thread.
    """
    factors = 4 * 8 * rank * sum(shape)
    panel = max(_PANEL_BYTES, 8 * math.prod(shape[1:]))
    return math.prod(shape) * NUMPY_DTYPES[dtype].itemsize + factors + 6 * n_threads * panel


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round float32 to a checkpoint's dtype, to nearest even.

    Parameters
    ----------
    values : float32, any shape
    dtype : {"f32", "f16", "bf16"}

    Returns
    -------
    float32 (the same array), float16 or uint16 (the bits of bf16), same shape
        NaN and infinity stay what they are.

    Raises
    ------
    QuantizationError
        A finite value becomes infinite in float16.
    """
    if dtype == "f32":
        return values
    if dtype == "f16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        beyond = nonfinite(half) & ~nonfinite(values)
        if beyond.any():
            raise QuantizationError(
                f"a weight is {float(values[beyond][0]):.6g}; float16 ends at {F16_MAX:.0f}: use "
                "quant='int8' or 'int4', which are made from float32"
            )
        return half
    if dtype != "bf16":
        raise InvalidArgumentError(f"dtype is {dtype!r}; expected f32, f16 or bf16")
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = np.isnan(values)
    return np.where(is_nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def _sum(
    weights: NDArray[np.float32], left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return weights + left @ right for one panel."""
    total = left[:, :1] * right[0]
    term = np.empty_like(total)
    for k in range(1, len(right)):
        np.multiply(left[:, k : k + 1], right[k], out=term)
        total += term
    total += weights
    with np.errstate(over="ignore"):
        rounded: NDArray[np.float32] = total.astype(np.float32)
    return rounded


def _for_each(work: Callable[[int], None], starts: range, n_threads: int) -> None:
    """Call `work` for each start, in several threads; an interruption drops those not begun."""
    pool = ThreadPoolExecutor(n_threads, "lora-merge")
    try:
        for _ in pool.map(work, starts):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
