"""Dense types: the checkpoint's own numbers, laid out in bands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.quant.bands import from_bands, to_bands
from llama2q.quant.bits import check_matrix, widen
from llama2q.quant.quant_type import QuantType


def _dense(name: str, dtype: str) -> QuantType:
    return QuantType(
        name=name,
        dtype=dtype,
        columns_per_line=0,
        group_sizes=(),
        has_grid=False,
        has_rows=True,
    )


F32 = _dense("f32", "F32")
F16 = _dense("f16", "F16")
BF16 = _dense("bf16", "BF16")
DENSE_TYPES = (F32, F16, BF16)


def encode(weights: NDArray[Any]) -> NDArray[Any]:
    """Lay a matrix out in bands, bits unchanged.

    Parameters
    ----------
    weights : float32, float16 or uint16 (holds bfloat16), (rows, cols)

    Returns
    -------
    same dtype, (n_bands, cols, 16)

    Raises
    ------
    NonFiniteWeightError
        A weight is NaN or infinite.
    """
    check_matrix(weights)
    return to_bands(weights, 1)[:, :, :, 0]


def decode(values: NDArray[Any], rows: int, cols: int) -> NDArray[np.float32]:
    """Undo `encode` and widen.

    Parameters
    ----------
    values : float32, float16 or uint16 (holds bfloat16), (n_bands, cols, 16)
    rows, cols : int
        Shape of the matrix, without padding.

    Returns
    -------
    float32, (rows, cols)
    """
    return np.ascontiguousarray(widen(from_bands(values[:, :, :, None])[:rows, :cols]))
