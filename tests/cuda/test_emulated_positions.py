"""Scaled positions, embeddings and receipts where the emulated device has layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llama2q
from builders import core_model, run
from emulated_models import assert_close, prompt, weights_of
from llama2q import devices
from llama2q.errors import ReceiptError
from reference import yarn_rope

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize("n_layers", [1, 2])
def test_yarn(n_layers: int) -> None:
    """The device is handed cos and sin with the factor in them."""
    weights, ids = weights_of("int4", 64), prompt(70)
    rope = yarn_rope(weights.shape.head_dim, weights.shape.rope_theta, 16.0, 4096)
    expected = run(core_model(weights, rope=rope), ids)
    shares = [(devices.library(), 0, n_layers)]
    assert_close(expected, run(core_model(weights, rope=rope, devices=shares), ids))
    with pytest.raises(AssertionError, match="KL divergence"):
        assert_close(expected, run(core_model(weights, devices=shares), ids))


@pytest.mark.parametrize("gpu_layers", [6, 3])
def test_embeddings_and_receipts(convert_mini: Callable[..., Path], gpu_layers: int) -> None:
    path, text = convert_mini(group_size=128), "The river is deep"
    with llama2q.load(path, n_ctx=128, kv_dtype="f32", device="cpu") as cpu:
        expected = cpu.embed([text, "A"])
    options = {"device": "cuda", "gpu_layers": gpu_layers}
    with llama2q.load(path, n_ctx=128, kv_dtype="f32", **options) as llm:
        found = llm.embed([text, "A"])
        receipt = llm.generate(text, max_tokens=3, seed=1).receipt
    cosines = (found.astype(np.float64) * expected).sum(axis=1)
    # Some activations round to another int8, which turns a vector a little: 1e-4 was seen.
    assert (cosines > 0.999).all(), cosines
    assert expected[0] @ expected[1] < 0.9
    assert receipt is not None
    assert receipt.contract is None
    with pytest.raises(ReceiptError, match="GPU"):
        llama2q.replay(receipt, path)
