"""Edits, cuts and draw together, against exact probabilities.

The Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant: of n independent draws, the
empirical distribution function is further than e from the true one anywhere with probability at
most 2 exp(-2 n e^2), for any distribution and any order of the tokens. e is chosen so that this is
1e-9; the seeds are fixed, so a run that passes once passes always.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llama2q import _core, kernels

DRAWS = 40_000
LIMIT = math.sqrt(math.log(2 / 1e-9) / (2 * DRAWS))
VOCAB = 120
PROMPT = [*range(0, 30), 5, 5]
OUTPUT = [3, 40, 40, 40, 41, 41, 60]


def exact_probabilities(logits: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """Follow the definition of each step, in float64."""
    x = logits.astype(np.float64)
    for token, bias in how.get("bias", {}).items():
        x[token] += bias
    for token in {*PROMPT, *OUTPUT}:
        r = how.get("repetition", 1.0)
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token in set(OUTPUT):
        x[token] -= how.get("frequency", 0.0) * OUTPUT.count(token) + how.get("presence", 0.0)
    x[how.get("banned_ids", [])] = -np.inf
    p = np.exp((x - x.max()) / how["temperature"])
    p[p < how.get("min_p", 0.0)] = 0
    order = np.argsort(-p, kind="stable")
    p[order[how.get("top_k") or VOCAB :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before > how.get("top_p", 1.0)]] = 0
    return p / p.sum()


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.0, "repetition": 1.7},
    {"temperature": 0.8, "presence": 0.9, "frequency": 0.6},
    {"temperature": 1.2, "presence": -1.5, "frequency": -0.4, "top_p": 0.8},
    {"temperature": 0.9, "bias": {7: 2.0, 8: -100.0, 90: 1.5, 3: -math.inf}, "top_k": 60},
    {"temperature": 1.5, "banned_ids": [0, 1, 2, 119], "repetition": 1.2, "min_p": 0.02},
    {"temperature": 0.7, "repetition": 0.8, "frequency": 0.3, "presence": 0.2, "top_p": 0.93,
     "top_k": 50, "min_p": 0.001, "bias": {11: 1.0}, "banned_ids": [12]},
]  # fmt: skip


@pytest.mark.parametrize("how", CASES, ids=[str(i) for i in range(len(CASES))])
def test_distribution(how: dict[str, Any]) -> None:
    logits = np.random.default_rng(9).normal(0, 2, VOCAB).astype(np.float32)
    edited = kernels.edit_logits(
        logits,
        prompt_ids=PROMPT,
        output_ids=OUTPUT,
        **{
            name: how[name]
            for name in ("bias", "repetition", "frequency", "presence", "banned_ids")
            if name in how
        },
    )

    def spread(name: str, otherwise: float, dtype: type) -> np.ndarray:
        return np.full(DRAWS, how.get(name, otherwise), dtype)

    drawn = _core.sample(
        np.ascontiguousarray(np.broadcast_to(edited, (DRAWS, VOCAB))),
        spread("temperature", 1, np.float32),
        spread("top_p", 1, np.float32),
        spread("top_k", 0, np.int32),
        spread("min_p", 0, np.float32),
        np.arange(DRAWS, dtype=np.uint64) // np.uint64(4),
        (np.arange(DRAWS, dtype=np.int32) % 2),
        (np.arange(DRAWS, dtype=np.int32) % 4) // 2 + 7,
    )
    exact = exact_probabilities(logits, how)
    found = np.bincount(drawn, minlength=VOCAB) / DRAWS
    assert (found[exact == 0] == 0).all()
    for order in (np.arange(VOCAB), np.argsort(-exact), np.argsort(logits)):
        distance = np.abs(np.cumsum(found[order]) - np.cumsum(exact[order])).max()
        assert distance <= LIMIT
