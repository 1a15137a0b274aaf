"""Second moments of what a matrix is multiplied with, factored for error feedback."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.errors import CalibrationError

_log = logging.getLogger(__name__)

_F32: TypeAlias = NDArray[np.float32]

DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean (Frantar et al. 2022)."""
_RETRIES = 4


@dataclass(frozen=True, slots=True)
class Factors:
    """H = L D L^T.

    Attributes
    ----------
    ldl : float32, (width, width)
        L below the diagonal, D on it, L^T above.
    importance : float32, (width,)
        The diagonal of H.
    damping : float
        The share of the mean that the diagonal got.
    """

    ldl: _F32
    importance: _F32
    damping: float


class Moments:
    """H = sum of x x^T over inputs x, in float32, each element a chain over ascending tokens.

    Parameters
    ----------
    width : int
        Elements of an input.
    n_threads : int
    """

    def __init__(self, width: int, n_threads: int) -> None:
        self._h = np.zeros((width, width), np.float32)
        self._n_threads = n_threads

    def add(self, x: _F32) -> Self:
        """Add inputs, float32 (n, width)."""
        _core.add_gram(self._h, x, n_threads=self._n_threads)
        return self

    def factor(self) -> Factors:
        """Factor H in place, with `DAMPING`, or ten times as much as long as that fails.

        Raises
        ------
        CalibrationError
            H is not finite.
        """
        h, width = self._h, len(self._h)
        diagonal = h.diagonal().copy()
        mean = math.fsum(diagonal) / width
        if not math.isfinite(mean):
            raise CalibrationError("the inputs' squares are not finite in float32")
        _core.mirror_lower(h, self._n_threads)
        damping = DAMPING
        for _ in range(_RETRIES):
            importance = diagonal + np.float32(damping * mean if mean > 0 else 1.0)
            np.fill_diagonal(h, importance)
            if _core.ldl(h, n_threads=self._n_threads) < 0:
                _core.mirror_lower(h, self._n_threads)
                return Factors(h, importance, damping)
            _restore(h)
            damping *= 10
            _log.warning(
                "the second moments of %d inputs cannot be factored in float32; damping is now %g "
                "of their mean",
                width,
                damping,
            )
        raise CalibrationError(f"the inputs' second moments {list(h.shape)} cannot be factored")


def _restore(h: _F32) -> None:
    """Copy what is above the diagonal below it."""
    for i in range(1, len(h)):
        h[i, :i] = h[:i, i]
