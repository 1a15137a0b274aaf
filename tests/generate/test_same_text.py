"""Sampled text stays what it was: a change of the sampler must not change an id."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from llama2q import Llama, _core

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 40},
    {"temperature": 1.3, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.5, "top_k": 7, "min_p": 0.01},
    {"temperature": 0.0},
]
DEMO_MODEL = "c91a9c389742033aeceea1113ea2ada2305c81de1ae3027f5d1f6bf5aa23f9de"
LARGE_VOCABULARY = "c37e77fdcf5ec7e9fc2c8ff05e60e85a0635b5017a39c4646a30377b506aa413"


def digest(ids: list[int]) -> str:
    return hashlib.sha256(np.array(ids, np.int32).tobytes()).hexdigest()


def test_demo_model(mini: Llama) -> None:
    ids: list[int] = []
    for seed, settings in enumerate(SETTINGS):
        for prompt in ("Once upon a time", "The king"):
            ids += mini.generate(prompt, seed=seed, max_tokens=50, **settings).token_ids
    assert len(ids) > 300
    assert digest(ids) == DEMO_MODEL


@pytest.mark.parametrize("isa", _core.isas())
def test_large_vocabulary(isa: str) -> None:
    """Logits of 32,000 tokens made of integers only, so that they are equal everywhere."""
    n, vocab_size = 20, 32000
    i = np.arange(n * vocab_size, dtype=np.uint64).reshape(n, vocab_size)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    logits = (mixed.astype(np.float32) * np.float32(2.0**-20)) - np.float32(8)
    ids: list[int] = []
    for seed, settings in enumerate(SETTINGS):
        ids += _core.sample(
            logits,
            np.full(n, settings["temperature"], np.float32),
            np.full(n, settings.get("top_p", 1.0), np.float32),
            np.full(n, settings.get("top_k", 0), np.int32),
            np.full(n, settings.get("min_p", 0.0), np.float32),
            np.full(n, seed, np.uint64),
            np.zeros(n, np.int32),
            np.arange(n, dtype=np.int32),
            isa,
        ).tolist()
    assert digest(ids) == LARGE_VOCABULARY
