"""Exact conversions between float formats, and the rounding of scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import InvalidArgumentError, NonFiniteWeightError, QuantizationError

F16_MAX = 65504.0
_F16_MIN_NORMAL = np.float32(2.0**-14)
_F16_STEP_INVERSE = np.float32(2.0**24)  # 1 / (distance of float16 subnormals)


def widen(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Widen weights to float32, exactly.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), any shape

    Returns
    -------
    float32, same shape
    """
    if weights.dtype == np.float32:
        return weights
    if weights.dtype == np.float16:
        return weights.astype(np.float32)
    if weights.dtype == np.uint16:
        return (weights.astype(np.uint32) << np.uint32(16)).view(np.float32)
    raise InvalidArgumentError(
        f"weights have dtype {weights.dtype}; expected float32, float16 or uint16 (bfloat16)"
    )


def check_matrix(weights: NDArray[Any]) -> None:
    """Refuse anything but a non-empty matrix of finite numbers.

    Raises
    ------
    InvalidArgumentError
        The array is not two-dimensional, or empty, or of another dtype.
    NonFiniteWeightError
        A weight is NaN or infinite; the message has row, column and value.
    """
    if weights.ndim != 2 or weights.size == 0:
        raise InvalidArgumentError(f"weights have shape {weights.shape}; expected (rows, cols)")
    bad = nonfinite(weights)
    if bad.any():
        row, col = (int(i) for i in np.argwhere(bad)[0])
        value = float(widen(weights[row, col : col + 1])[0])
        raise NonFiniteWeightError(f"row {row}, column {col} is {value}; expected a finite number")


def nonfinite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark NaN and infinity by their exponent bits; uint16 is read as bfloat16."""
    kinds: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
        "<f2": (np.uint16, 0x7C00),
        "<u2": (np.uint16, 0x7F80),
        "<f4": (np.uint32, 0x7F800000),
        "<f8": (np.uint64, 0x7FF0000000000000),
    }
    if values.dtype.str not in kinds:
        raise InvalidArgumentError(f"dtype {values.dtype} is not a float format")
    unsigned, mask = kinds[values.dtype.str]
    exponent = unsigned(mask)
    marked: NDArray[np.bool_] = (values.view(unsigned) & exponent) == exponent
    return marked


def round_scale(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round scales to float16: to nearest even, but away from zero below 2^-14.

    Rounding a tiny scale up keeps every quotient within the range of the codes.

    Parameters
    ----------
    scale : float32, any shape
        Finite; zero (of either sign) becomes +0.

    Returns
    -------
    float16, same shape

    Raises
    ------
    QuantizationError
        A rounded scale would exceed 65504.
    """
    magnitude = np.abs(scale)
    tiny = magnitude < _F16_MIN_NORMAL
    with np.errstate(over="ignore"):
        nearest = magnitude.astype(np.float16)
    if np.isinf(nearest).any():
        raise QuantizationError(
            f"a scale of {float(magnitude.max())} is needed; float16 ends at {F16_MAX:.0f}: "
            "use quant='none' for these weights"
        )
    # Below 2^-14 the bits of a float16 are its value in units of 2^-24; 1024 is 2^-14 itself.
    upward = np.ceil(np.where(tiny, magnitude, 0) * _F16_STEP_INVERSE).astype(np.uint16)
    bits = np.where(tiny, upward, nearest.view(np.uint16))
    bits |= np.where((scale < 0) & (bits != 0), np.uint16(0x8000), np.uint16(0))
    return bits.view(np.float16)
