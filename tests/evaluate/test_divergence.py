"""Divergences against their definitions, written out in long double."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2q.errors import NonFiniteError
from llama2q.evaluate.divergence import Estimate, TokenScores, percentiles, score_rows

# Float64 sums of up to 4096 terms of either sign, each known to some 1e-15 of the largest.
TOLERANCE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13}


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.longdouble]:
    exact = np.exp(logits.astype(np.longdouble))
    return exact / exact.sum(axis=1, keepdims=True)


def pair(n: int, vocab: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 4, (n, vocab)).astype(np.float32)
    return a, (a + rng.normal(0, 0.3, (n, vocab))).astype(np.float32)


@pytest.mark.parametrize(("n", "vocab"), [(1, 1), (1, 7), (15, 3), (16, 101), (37, 4096)])
def test_against_the_definition(n: int, vocab: int) -> None:
    a, b = pair(n, vocab)
    targets = np.random.default_rng(1).integers(0, vocab, n).tolist()
    found = score_rows(a, b, targets)
    p, q = probabilities(a), probabilities(b)
    rows = np.arange(n)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=1), **TOLERANCE)
    np.testing.assert_allclose(found.nll_a, -np.log(p[rows, targets]), **TOLERANCE)
    np.testing.assert_allclose(found.nll_b, -np.log(q[rows, targets]), **TOLERANCE)
    np.testing.assert_allclose(found.delta_p, (q - p)[rows, targets], **TOLERANCE)
    np.testing.assert_array_equal(found.same_top, p.argmax(axis=1) == q.argmax(axis=1))
    assert found.kl.dtype == found.nll_a.dtype == np.float64


def test_the_divergence_is_not_symmetric() -> None:
    a, b = pair(3, 50)
    there, back = score_rows(a, b, [0, 1, 2]), score_rows(b, a, [0, 1, 2])
    assert (there.kl != back.kl).all()
    np.testing.assert_array_equal(there.nll_a, back.nll_b)


def test_equal_logits_are_exactly_equal() -> None:
    a, _ = pair(20, 300)
    found = score_rows(a, a.copy(), [5] * 20)
    assert (found.kl == 0).all()
    assert (found.delta_p == 0).all()
    assert found.same_top.all()


def test_extreme_logits() -> None:
    a = np.array([[0, 0], [3e38, -3e38]], np.float32)
    b = np.array([[1e4, 0], [3e38, -3e38]], np.float32)
    found = score_rows(a, b, [0, 1])
    # p = (1/2, 1/2), log q = (0, -1e4): 1/2 * (-log 2) + 1/2 * (-log 2 + 1e4).
    np.testing.assert_allclose(found.kl, [5e3 - math.log(2), 0.0], rtol=1e-14)
    np.testing.assert_allclose(found.nll_a, [math.log(2), 6e38], rtol=1e-6)
    np.testing.assert_allclose(found.delta_p, [0.5, 0.0])


def test_ties_go_to_the_lower_id() -> None:
    a = np.array([[1, 1, 0], [1, 1, 0]], np.float32)
    b = np.array([[2, 1, 2], [1, 2, 2]], np.float32)
    assert score_rows(a, b, [0, 0]).same_top.tolist() == [True, False]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["A", "B"])
def test_logits_that_are_no_numbers(wrong: float, model: str) -> None:
    a, b = pair(30, 5)
    (a if model == "A" else b)[29, 2] = wrong
    with pytest.raises(NonFiniteError, match=f"model {model}"):
        score_rows(a, b, [0] * 30)


def test_errors_are_over_windows() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0, 0.0, 0.0])
    found = Estimate.of_mean(values, 3)
    means = [1.5, 4.5, 0.0]
    assert found.value == 2.0
    assert found.standard_error == pytest.approx(
        math.sqrt(sum((m - 2) ** 2 for m in means) / 2) / math.sqrt(3)
    )
    assert Estimate.of_mean(values, 1) == Estimate(2.0, None)
    assert Estimate.of_mean(np.array([True, True, False, False]), 2) == Estimate(0.5, 0.5)


def test_functions_of_estimates() -> None:
    assert Estimate(0.0, 0.25).exp() == Estimate(1.0, 0.25)
    assert Estimate(4.0, 0.1).sqrt() == Estimate(2.0, pytest.approx(0.025))
    assert Estimate(0.0, 0.0).sqrt() == Estimate(0.0, 0.0)
    assert Estimate(1e6, None).exp() == Estimate(math.inf, None)


def test_percentiles() -> None:
    values = np.arange(1001.0)[::-1]
    found = percentiles(values, (0.0, 0.1, 50.0, 99.9, 100.0))
    expected = {"0": 0.0, "0.1": 1.0, "50": 500.0, "99.9": 999.0, "100": 1000.0}
    assert found == pytest.approx(expected)


def test_parts_are_joined_in_order() -> None:
    a, b = pair(40, 30)
    whole = score_rows(a, b, list(range(20)) * 2)
    halves = [score_rows(a[s], b[s], list(range(20))) for s in (slice(0, 20), slice(20, 40))]
    joined = TokenScores.concatenate(halves)
    for name in ("kl", "nll_a", "nll_b", "same_top", "delta_p"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
