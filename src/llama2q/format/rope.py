"""Rotary frequencies, correctly rounded on any machine."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import InvalidArgumentError
from llama2q.rope_scaling import RopeScaling

_CONTEXT = Context(prec=50)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
_NONE = RopeScaling()


def inv_freq(theta: float, head_dim: int, rope: RopeScaling = _NONE) -> NDArray[np.float64]:
    """Return the frequency of each rotated pair i: theta^(-2i / head_dim), scaled.

    Computed with 50 decimal digits, then rounded once: libm's and NumPy's pow differ between
    machines. "dynamic" is not scaled: `RopeScaling.fixed` says what acts.

    Parameters
    ----------
    theta : float
        rope_theta.
    head_dim : int
        Width of a head, in elements.
    rope : RopeScaling

    Returns
    -------
    float64, (head_dim / 2,)
    """
    log_theta = _CONTEXT.ln(Decimal(theta))
    if rope.scaling == "ntk":
        power = _CONTEXT.divide(Decimal(head_dim), Decimal(head_dim - 2))
        log_factor = _CONTEXT.ln(Decimal(rope.factor))
        log_theta = _CONTEXT.add(log_theta, _CONTEXT.multiply(power, log_factor))
    exponents = (
        _CONTEXT.divide(_CONTEXT.multiply(Decimal(-2 * i), log_theta), Decimal(head_dim))
        for i in range(head_dim // 2)
    )
    frequencies = [_CONTEXT.exp(exponent) for exponent in exponents]
    if rope.scaling == "linear":
        frequencies = [_CONTEXT.divide(x, Decimal(rope.factor)) for x in frequencies]
    if rope.scaling == "yarn":
        share = _interpolated_share(log_theta, head_dim, rope)
        frequencies = [_between(x, rope.factor, share(i)) for i, x in enumerate(frequencies)]
    return np.array([float(x) for x in frequencies], dtype=np.float64)


def attention_factor(rope: RopeScaling) -> float:
    """Return the factor on cos and sin: YaRN's 0.1 ln(factor) + 1 unless one is given; else 1."""
    if rope.scaling != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    log_factor = _CONTEXT.ln(Decimal(rope.factor))
    return float(_CONTEXT.fma(Decimal("0.1"), log_factor, Decimal(1)))


def _between(frequency: Decimal, factor: float, share: Decimal) -> Decimal:
    """Return share * frequency / factor + (1 - share) * frequency."""
    slow = _CONTEXT.divide(frequency, Decimal(factor))
    kept = _CONTEXT.multiply(frequency, _CONTEXT.subtract(Decimal(1), share))
    return _CONTEXT.fma(slow, share, kept)


def _interpolated_share(
    log_theta: Decimal, head_dim: int, rope: RopeScaling
) -> Callable[[int], Decimal]:
    """Return YaRN's ramp over pairs: 0 keeps the frequency, 1 divides it by the factor.

    As Hugging Face's `_compute_yarn_parameters` has it: the ramp goes over the index of a pair, but
    its upper end is bounded by head_dim - 1.
    """
    if log_theta == 0:
        raise InvalidArgumentError("rope scaling yarn is not defined for rope_theta 1")

    def pair_that_turns(times: float) -> Decimal:
        turns = _CONTEXT.multiply(Decimal(times), _CONTEXT.multiply(Decimal(2), _PI))
        ratio = _CONTEXT.ln(_CONTEXT.divide(Decimal(rope.original_max_seq_len), turns))
        numerator = _CONTEXT.multiply(Decimal(head_dim), ratio)
        return _CONTEXT.divide(numerator, _CONTEXT.multiply(Decimal(2), log_theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low = low.to_integral_value(rounding=ROUND_FLOOR)
        high = high.to_integral_value(rounding=ROUND_CEILING)
    low, high = max(low, Decimal(0)), min(high, Decimal(head_dim - 1))
    if low == high:
        high = _CONTEXT.add(high, Decimal("0.001"))
    width = _CONTEXT.subtract(high, low)

    def share(i: int) -> Decimal:
        ratio = _CONTEXT.divide(_CONTEXT.subtract(Decimal(i), low), width)
        return min(max(ratio, Decimal(0)), Decimal(1))

    return share
