"""Rotary frequencies, correctly rounded on any machine."""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

_CONTEXT = Context(prec=50)


def inv_freq(theta: float, head_dim: int) -> NDArray[np.float64]:
    """Return theta^(-2i / head_dim) for each rotated pair i (Meta's `precompute_freqs_cis`).

    Computed with 50 decimal digits, then rounded once: libm's and NumPy's pow differ between
    machines.

    Parameters
    ----------
    theta : float
        rope_theta.
    head_dim : int
        Width of a head, in elements.

    Returns
    -------
    float64, (head_dim / 2,)
    """
    log_theta = _CONTEXT.ln(Decimal(theta))
    exponents = (
        _CONTEXT.divide(_CONTEXT.multiply(Decimal(-2 * i), log_theta), Decimal(head_dim))
        for i in range(head_dim // 2)
    )
    return np.array([float(_CONTEXT.exp(exponent)) for exponent in exponents], dtype=np.float64)
