"""H = L D L^T in place."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract
from llama2q import _core
from strategies import SEEDS, Array, assert_same_bits, assert_within, floats
from tolerances import bound

ISAS = _core.isas()
# Around register tiles, strips of 48 rows and blocks of 128 columns.
SIZES = [1, 2, 15, 16, 17, 48, 127, 128, 129, 130, 177, 300, 520]


def positive(size: int, seed: int = 0) -> Array:
    """A positive definite float32 matrix, NaN above its diagonal."""
    x = floats(seed, (size + 5, size)).astype(np.float64)
    x *= 2.0 ** np.random.default_rng(seed).uniform(-8, 8, size)
    h = (x.T @ x + np.diag(0.01 * (x * x).sum(axis=0))).astype(np.float32)
    h[np.triu_indices(size, 1)] = np.nan
    return h


def factor(h: Array, isa: str | None = None, n_threads: int | None = None) -> Array:
    result = h.copy()
    assert _core.ldl(result, isa, n_threads) == -1
    return result


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, size=st.integers(1, 30))
def test_contract(isa: str, seed: int, size: int) -> None:
    h = positive(size, seed)
    assert_same_bits(factor(h, isa, 1), contract.ldl(h))


@pytest.mark.parametrize("isa", ISAS)
def test_contract_over_blocks(isa: str) -> None:
    h = positive(150)
    assert_same_bits(factor(h, isa, 2), contract.ldl(h))


@pytest.mark.parametrize("size", SIZES)
def test_factors_rebuild_the_matrix(size: int) -> None:
    """Higham, Lemma 8.4: h[i, j] is a sum of j + 1 terms, one rounding each, and a quotient."""
    h = positive(size)
    found = factor(h)
    lower = np.tril(found, -1).astype(np.float64) + np.eye(size)
    pivots = np.diag(found).astype(np.float64)
    assert (pivots > 0).all()
    rebuilt = (lower * pivots) @ lower.T
    limit = bound((np.abs(lower) * pivots) @ np.abs(lower).T, size + 1)
    below = np.tril_indices(size)
    assert_within(h[below], rebuilt[below], limit[below])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_same_bits(isa: str, size: int) -> None:
    """On every instruction set and for any number of threads.

    What is above the diagonal is not read (NaN would spread) and not written (numbers stay).
    """
    h = positive(size)
    expected = factor(h, "scalar", 1)
    above = np.triu_indices(size, 1)
    h[above] = expected[above] = np.arange(1, len(above[0]) + 1)
    for n_threads in (1, 2, 3):
        assert_same_bits(factor(h, isa, n_threads), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("place", [0, 1, 17, 127, 128, 200, 299])
@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, np.nan, np.inf])
def test_first_bad_pivot(isa: str, place: int, value: float) -> None:
    h = np.eye(300, dtype=np.float32)
    h[place, place] = value
    h[299, 299] = -1
    assert _core.ldl(h, isa) == place


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("row", "column"), [(1, 0), (60, 3), (200, 3), (299, 130)])
def test_elimination_makes_a_pivot_negative(isa: str, row: int, column: int) -> None:
    """1 - 2 * 2, though the diagonal is positive."""
    h = np.eye(300, dtype=np.float32)
    h[row, column] = 2
    assert _core.ldl(h, isa) == row
    h = np.eye(300, dtype=np.float32)
    h[row, column] = np.nan
    assert _core.ldl(h, isa) == row


def test_empty() -> None:
    assert _core.ldl(np.empty((0, 0), np.float32)) == -1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT that a process can send itself")
def test_ctrl_c() -> None:
    """A signal ends it between two blocks: the last quotient is not yet there."""
    h = 2 * np.eye(2000, dtype=np.float32)
    h[-1, -2] = 1
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _core.ldl(h, "scalar", 1)
    timer.join()
    assert h[-1, -2] == 1
