"""How far the predictions of two models are apart, token by token and summed up, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import NonFiniteError

_F64 = NDArray[np.float64]

_ROWS_AT_A_TIME = 16
"""Rows that are widened to float64 together, so that they need little memory."""

_EXP_MAX = 709.0

KL_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
DELTA_P_PERCENTILES = (0.0, 0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is known of each scored token.

    Attributes
    ----------
    kl : float64, (n,)
        KL divergence of B's prediction from A's, sum of p_A * (log p_A - log p_B), in nats.
    nll_a, nll_b : float64, (n,)
        -log p of the token that follows.
    same_top : bool, (n,)
        Whether both find the same token likeliest; of equal ones, the lower id counts.
    """

    kl: _F64
    nll_a: _F64
    nll_b: _F64
    same_top: NDArray[np.bool_]

    @property
    def delta_p(self) -> _F64:
        """Probability of the token that follows, under B less under A: float64, (n,)."""
        difference: _F64 = np.exp(-self.nll_b) - np.exp(-self.nll_a)
        return difference

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts, in their order."""
        return cls(
            kl=np.concatenate([part.kl for part in parts]),
            nll_a=np.concatenate([part.nll_a for part in parts]),
            nll_b=np.concatenate([part.nll_b for part in parts]),
            same_top=np.concatenate([part.same_top for part in parts]),
        )


def score_rows(
    logits_a: NDArray[np.float32], logits_b: NDArray[np.float32], targets: Sequence[int]
) -> TokenScores:
    """Compare the predictions of two models.

    Parameters
    ----------
    logits_a, logits_b : float32, (n, vocab_size)
        Of the reference and of the candidate, n >= 1.
    targets : sequence of int, (n,)
        The token that follows each row.

    Raises
    ------
    NonFiniteError
        If a logit is NaN or infinite.
    """
    ids = np.asarray(targets)
    slices = [slice(i, i + _ROWS_AT_A_TIME) for i in range(0, len(ids), _ROWS_AT_A_TIME)]
    return TokenScores.concatenate([_score(logits_a[s], logits_b[s], ids[s]) for s in slices])


def _score(
    logits_a: NDArray[np.float32], logits_b: NDArray[np.float32], ids: NDArray[np.int_]
) -> TokenScores:
    for name, logits in (("A", logits_a), ("B", logits_b)):
        if not np.isfinite(logits).all():
            raise NonFiniteError(f"model {name} gave a logit that is NaN or infinite")
    log_a, log_b = log_softmax(logits_a), log_softmax(logits_b)
    rows = np.arange(len(ids))
    return TokenScores(
        kl=(np.exp(log_a) * (log_a - log_b)).sum(axis=1),
        nll_a=-log_a[rows, ids],
        nll_b=-log_b[rows, ids],
        same_top=logits_a.argmax(axis=1) == logits_b.argmax(axis=1),
    )


def log_softmax(logits: NDArray[np.float32]) -> _F64:
    """Return the log-probabilities of each row: float64, (n, vocab_size)."""
    wide: _F64 = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error, which is None where there is but one window.

    The error is that of the mean over windows, sd / sqrt(n_windows), since the tokens of a window
    are not independent; functions of means carry it on by their derivative.
    """

    value: float
    standard_error: float | None

    @classmethod
    def of_mean(cls, values: NDArray[np.float64] | NDArray[np.bool_], n_windows: int) -> Self:
        """Average values of windows of equal length, one after the other: (n,)."""
        means = values.reshape(n_windows, -1).mean(axis=1)
        error = float(np.std(means, ddof=1)) / math.sqrt(n_windows) if n_windows > 1 else None
        return cls(float(means.mean()), error)

    def exp(self) -> Self:
        """Return exp of the figure."""
        value = math.exp(self.value) if self.value < _EXP_MAX else math.inf
        return type(self)(value, self._times(value))

    def sqrt(self) -> Self:
        """Return the square root of the figure."""
        value = math.sqrt(self.value)
        return type(self)(value, self._times(0.5 / value if value else 0.0))

    def _times(self, derivative: float) -> float | None:
        return None if self.standard_error is None else self.standard_error * derivative


def percentiles(values: _F64, at: Sequence[float]) -> dict[str, float]:
    """Return percentiles, linear between values, by names like "99.9"; 0 and 100 are the ends."""
    found = np.quantile(values, np.asarray(at) / 100)
    return {f"{percent:g}": float(value) for percent, value in zip(at, found, strict=True)}
