"""Tolerances, each derived; no number here was fitted to a result.

The engine computes in float32 with round to nearest, unit roundoff u = 2^-24. A result that went
through n roundings is off by at most gamma(n) = n*u / (1 - n*u) times the sum of the magnitudes
that went into it (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Lemma 3.1 and
section 3.1). `bound` is that; every kernel is held to it, with n counted in `reference.py`.

That bound assumes that all roundings conspire. Through a whole model it would be loose by the
square root of n at each of dozens of steps, so end to end the spread is *measured on the float64
model*: every op's output is moved by a random sign times gamma_likely(n) times its magnitudes,
where gamma_likely(n) = exp(sqrt(n)*u + n*u^2 / (1 - u)) - 1 is the probabilistic counterpart with
lambda = 1 (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, Theorem 2.4): for independent
roundings of mean zero it is at least one standard deviation of the error, since every rounding is
at most u and the standard deviation of a sum of n of them at most sqrt(n)*u. The engine's error
is one draw from a distribution no wider than that of the runs. With R runs over m logits each,
the largest of R*m deviations is exceeded by the largest of m further ones with probability at most
1 / (R + 1) were they exchangeable; the factor 2 makes room for that: for the near-normal
deviations at hand, twice the maximum of at least 10^4 draws (about 3.7 standard deviations) lies
beyond 7 standard deviations.
Activations that fall on the other side of a rounding boundary of their int8 grid (or K and V of
the cache's) are part of the runs: quantization happens anew in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reference import (
    Cached,
    Float64Ops,
    Forward,
    Rope,
    score_roundings,
    weighted_mean_roundings,
)
from reference_weights import Weights

Array: TypeAlias = NDArray[Any]

U = 2.0**-24
"""Unit roundoff of float32."""
TINY = 2.0**-150
"""Largest error of one rounding to a subnormal float32."""
RUNS = 8
FACTOR = 2.0


def gamma(n: int) -> float:
    """Worst-case relative growth of n float32 roundings."""
    return n * U / (1 - n * U)


def gamma_likely(n: int) -> float:
    """Probable growth (lambda = 1) of n independent float32 roundings."""
    return math.expm1(math.sqrt(n) * U + n * U * U / (1 - U))


def bound(magnitude: Array, n: int) -> Array:
    """Return the worst-case absolute error after n roundings of terms that sum to `magnitude`."""
    return gamma(n) * magnitude + n * TINY


@dataclass(frozen=True)
class RandomRounding:
    """Moves an op's output by its probable rounding error, with random signs."""

    rng: np.random.Generator

    def __call__(self, y: Array, magnitude: Array, n: int) -> Array:
        signs = self.rng.integers(0, 2, y.shape) * 2.0 - 1
        return y + signs * gamma_likely(n) * magnitude


@dataclass(frozen=True)
class WorstCase:
    """Records the worst-case bound of the one op it is handed to; moves nothing."""

    bounds: list[Array]

    def __call__(self, y: Array, magnitude: Array, n: int) -> Array:
        self.bounds.append(bound(magnitude, n))
        return y


def end_to_end(
    weights: Weights,
    ids: Array,
    kv_dtype: str = "f32",
    *,
    runs: int = RUNS,
    rope: Rope | None = None,
) -> tuple[Array, float]:
    """Return the float64 logits (n, vocab_size) of ids and the tolerance for each of them."""
    exact = Forward(weights, kv_dtype=kv_dtype, rope=rope).step(ids)
    worst = 0.0
    for run in range(runs):
        ops = Float64Ops(noise=RandomRounding(np.random.default_rng(run)))
        moved = Forward(weights, ops, kv_dtype, rope).step(ids)
        worst = max(worst, float(np.abs(moved - exact).max()))
    return exact, FACTOR * worst


def of_one_op(op: Callable[[Float64Ops], Array]) -> tuple[Array, Array]:
    """Return the float64 result of one op and its worst-case bound."""
    bounds: list[Array] = []
    exact = op(Float64Ops(noise=WorstCase(bounds)))
    (limit,) = bounds
    return exact, limit


def of_attention(q: Array, k: Cached, v: Cached, positions: Array) -> tuple[Array, Array]:
    """Return float64 attention (n, n_heads * head_dim) and its worst-case bound.

    A weight is exp(s - m) / sum. If every argument of an exp is off by at most e, each weight is
    off by at most expm1(2e). The arguments are scores (their own bound) and differences s - m and
    m - m', each rounded once: along the running maximum those differences add up to at most the
    range of the scores, once over blocks and once over chunks. The sums add gamma.
    """
    ops = Float64Ops()
    exact = ops.attention(q.astype(np.float64), k, v, positions)
    n, n_heads, head_dim = q.shape
    keys, values = k.float64, np.abs(v.float64)
    n_keys, n_kv_heads, _ = keys.shape
    count = weighted_mean_roundings(n_keys, ops.exp_roundings)
    seen = np.arange(n_keys) <= positions[:, None]
    limit = np.empty((n, n_heads, head_dim))
    for head in range(n_heads):
        kv_head = head * n_kv_heads // n_heads
        rows, key = q[:, head].astype(np.float64), keys[:, kv_head]
        score = rows @ key.T / np.sqrt(head_dim)
        size = np.where(seen, np.abs(rows) @ np.abs(key).T / np.sqrt(head_dim), 0)
        top = np.where(seen, score, -np.inf).max(axis=1, keepdims=True)
        span = top - np.where(seen, score, np.inf).min(axis=1, keepdims=True)
        argument = bound(size.max(axis=1, keepdims=True), score_roundings(head_dim))
        p = np.where(seen, np.exp(np.minimum(score - top, 0)), 0)
        spread = p @ values[:, kv_head] / p.sum(axis=1, keepdims=True)
        limit[:, head] = spread * (np.expm1(2 * (argument + 3 * U * span)) + gamma(count))
    return exact, limit.reshape(n, -1) + count * TINY
