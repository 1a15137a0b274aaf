"""Small models on the CUDA library under the emulation, and how close to the CPU they must be."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
from builders import KV_DTYPES, TINY, core_model, random_weights
from llama2q import _core, devices
from reference_weights import Shape, Weights

LIBRARY = Path(llama2q.__file__).parent / "libllama2q_cuda_emulated.so"
HEADS = Shape(dim=256, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=101)
"""head_dim 64, which has kernels of its own."""
RECIPES = (
    ("int4", 32), ("int4", 64), ("int4", 128), ("int4-uniform", 32), ("int4-uniform", 128),
    ("int8", 32), ("int8", 64), ("int8", 128), ("f32", 0), ("bf16", 0), ("f16", 0),
)  # fmt: skip
QUICK = {
    ("int4", 32, "f16"), ("int4", 64, "f32"), ("int4", 128, "int8"), ("int4-uniform", 32, "int8"),
    ("int8", 64, "f16"), ("f32", 0, "f32"), ("bf16", 0, "f16"),
}  # fmt: skip
MEAN_KL, MOST_KL = 1e-3, 4e-3
"""Of logits whose attention multiplied f16 numbers, or whose activations fell on the other side of
a rounding boundary. Over all recipes 3.7e-4 and 8.7e-4 were measured on random weights, 1.0e-3 and
4.2e-3 on the demo model, whose bounds are three times as wide."""


@cache
def weights_of(kind: str, group_size: int, shape: Shape = TINY) -> Weights:
    return random_weights(shape, kind, group_size or 32)


@cache
def prompt(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, n).tolist()


def on_device(
    weights: Weights, kv_dtype: str = "f32", n_blocks: int = 8, layers: tuple[int, ...] = (2,)
) -> _core.Model:
    """Place the last layers on the device; on itself again where there are several shares."""
    shares = [(devices.library(), 0, n) for n in layers]
    return core_model(weights, kv_dtype, n_blocks=n_blocks, devices=shares)


def divergence(
    expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[np.float64, np.float64]:
    """Return mean and maximum over the rows of KL(expected || found), in nats."""
    p, q = (
        rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for rows in (
            logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
            for logits in (expected, found)
        )
    )
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return kl.mean(), kl.max()


def assert_close(
    expected: NDArray[np.float32], found: NDArray[np.float32], factor: float = 1
) -> None:
    mean, most = divergence(expected, found)
    assert np.isfinite(found).all()
    assert mean <= factor * MEAN_KL, f"mean KL divergence {mean}"
    assert most <= factor * MOST_KL, f"KL divergence of a row {most}"


COMBINATIONS = [
    pytest.param(
        kind, group_size, kv_dtype,
        marks=[] if (kind, group_size, kv_dtype) in QUICK else [pytest.mark.slow],
    )
    for kind, group_size in RECIPES
    for kv_dtype in KV_DTYPES
]  # fmt: skip
