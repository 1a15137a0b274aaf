"""Log-probabilities against float64, and their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q import _core, kernels
from llama2q.errors import InvalidArgumentError, NonFiniteError
from reference import Float64Ops
from strategies import SEEDS, assert_same_bits, assert_within, floats
from tolerances import U

ISAS = _core.isas()


def log_softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 log-probabilities (n, vocab) and the tolerance of each.

    S = sum exp(x - m) in float64. Each term is off by u |x - m| (its argument was rounded) and by
    exp's own error of `exp_roundings` u, relative; an argument at or below -87 is left out, which
    loses at most exp(-87). The sum in float64 adds n 2^-53. So log S is off by at most
    E = u (sum p |x - m| + exp_roundings) + n (2^-53 + exp(-87)), to first order; doubled for the
    second, and for log's own error of 2^-50. The result is rounded once to float32: u |logprob|.
    """
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    exact = shifted - np.log(total)
    distance = np.where(np.isfinite(shifted), np.abs(shifted), 0)
    error = U * ((p / total * distance).sum(axis=1, keepdims=True) + Float64Ops().exp_roundings)
    error += logits.shape[1] * (2.0**-53 + np.exp(-87.0)) + 2.0**-50
    return exact, 2 * error + U * np.abs(np.where(np.isfinite(exact), exact, 0))


def all_logprobs(logits: np.ndarray, isa: str | None = None) -> np.ndarray:
    """Return every token's, in order of id."""
    ids, values, _, _ = _core.logprobs(
        logits, np.zeros(len(logits), np.int32), logits.shape[1], isa
    )
    out = np.empty_like(values)
    np.put_along_axis(out, ids.astype(np.int64), values, axis=1)
    return out


@pytest.mark.parametrize("isa", ISAS)
@given(seed=SEEDS, vocab=st.sampled_from([1, 2, 15, 16, 17, 100, 4097]),
       scale=st.sampled_from([0.01, 1.0, 5.0, 60.0]))  # fmt: skip
def test_float64(isa: str, seed: int, vocab: int, scale: float) -> None:
    logits = floats(seed, (2, vocab), 0, scale)
    exact, limit = log_softmax(logits)
    assert_within(all_logprobs(logits, isa), exact, limit)


def test_known_values() -> None:
    values = all_logprobs(np.zeros((1, 32000), np.float32))
    np.testing.assert_array_equal(values, np.full((1, 32000), -np.log(32000), np.float32))
    assert all_logprobs(np.array([[5.0]], np.float32)).tolist() == [[0.0]]
    values = all_logprobs(np.array([[0.0, -np.inf, -200.0]], np.float32))
    assert values.tolist() == [[0.0, -np.inf, -200.0]]


@pytest.mark.parametrize("isa", ISAS[1:])
@given(seed=SEEDS, vocab=st.integers(1, 700), k=st.integers(0, 30))
def test_isas_agree(isa: str, seed: int, vocab: int, k: int) -> None:
    logits = np.minimum(floats(seed, (3, vocab), 3, 4.0), 100)
    chosen = np.random.default_rng(seed).integers(0, vocab, 3).astype(np.int32)
    k = min(k, vocab)
    for found, expected in zip(
        _core.logprobs(logits, chosen, k, isa),
        _core.logprobs(logits, chosen, k, "scalar"),
        strict=True,
    ):
        assert_same_bits(found, expected)


@given(seed=SEEDS, vocab=st.integers(1, 200), levels=st.integers(1, 100), k=st.integers(0, 40))
def test_order_and_rank(seed: int, vocab: int, levels: int, k: int) -> None:
    """A stable sort of descending logits is the order of ranks; many are equal here."""
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-levels, levels + 1, (4, vocab)) / 4).astype(np.float32)
    logits[logits == 0] *= rng.choice(np.array([-1, 1], np.float32), (logits == 0).sum())
    chosen = rng.integers(0, vocab, 4).astype(np.int32)
    k = min(k, vocab)
    ids, values, chosen_values, ranks = kernels.logprobs(logits, chosen, k)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(ids, order[:, :k])
    np.testing.assert_array_equal(ranks, 1 + np.argmax(order == chosen[:, None], axis=1))
    everything = all_logprobs(logits)
    np.testing.assert_array_equal(values, np.take_along_axis(everything, order[:, :k], axis=1))
    np.testing.assert_array_equal(chosen_values, everything[np.arange(4), chosen])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logits_raise(value: float) -> None:
    with pytest.raises(NonFiniteError):
        all_logprobs(np.array([[0.0, value, 1.0]], np.float32))
    with pytest.raises(NonFiniteError):
        all_logprobs(np.full((1, 3), -np.inf, np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5], 1), "token id 5 is outside the vocabulary; expected 0 to 4"),
        (([-1], 1), "token id -1"),
        (([0], 6), "k is 6; expected 0 to 5"),
        (([0], -1), "k is -1"),
        (([0, 0], 1), r"chosen has shape \(2,\); expected \(1,\)"),
    ],
)
def test_checks(arguments: Any, message: str) -> None:
    chosen, k = arguments
    with pytest.raises(InvalidArgumentError, match=message):
        _core.logprobs(np.zeros((1, 5), np.float32), np.array(chosen, np.int32), k)
