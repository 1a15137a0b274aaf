"""The sampler token by token: every sum in its written order, over the engine's own exp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2q import _core, kernels
from philox import uniform
from strategies import SEEDS


def total_of(mass: np.ndarray) -> np.float64:
    """Eight running sums by id mod 8, then lanes i and i + 4, 2, 1."""
    padded = np.concatenate([mass, np.zeros(-len(mass) % 8)]).reshape(-1, 8)
    sums = np.cumsum(padded, axis=0)[-1]
    for half in (4, 2, 1):
        sums = sums[:half] + sums[half : 2 * half]
    return sums[0]


def drawn_token(
    logits: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float, u: float
) -> int:
    scaled = (logits - logits.max()) / np.float32(temperature)
    mass = _core.exp(scaled).astype(np.float64)
    mass[mass < np.float32(min_p)] = 0
    order = np.argsort(-mass, kind="stable")
    order = order[: top_k or len(order)]
    order = order[mass[order] > 0]
    cumulative = np.cumsum(mass[order])
    total = cumulative[-1] if top_k else total_of(mass)
    count, kept = len(order), total
    if top_p < 1:
        before = np.concatenate([[0.0], cumulative[:-1]])
        count = int((before <= np.float64(np.float32(top_p)) * total).sum())
        kept = cumulative[count - 1]
    above = np.flatnonzero(cumulative[:count] > u * kept)
    return int(order[above[0] if len(above) else count - 1])


@pytest.mark.parametrize("shape", ["normal", "peaked", "levels"])
@given(
    seed=SEEDS,
    vocab=st.sampled_from([1, 9, 100, 1500, 5000]),
    temperature=st.sampled_from([0.4, 1.0, 3.0]),
    top_p=st.sampled_from([0.3, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 5, 40, 2000]),
    min_p=st.sampled_from([0.0, 0.001, 0.1]),
)
def test_every_draw(shape: str, seed: int, vocab: int, **how: Any) -> None:
    """Levels: only a few different logits, so that almost all are ties."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1 if shape == "normal" else 8, (6, vocab)).astype(np.float32)
    if shape == "levels":
        logits = rng.integers(-3, 1, (6, vocab)).astype(np.float32)
    for position, row in enumerate(logits):
        (found,) = kernels.sample(row[None], seed=seed, position=position, **how)
        assert found == drawn_token(row, u=uniform(seed, 0, position), **how)
