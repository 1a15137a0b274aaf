"""A whole step equals the numeric contract written in NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from builders import KV_DTYPES, TINY, core_model, random_weights, run
from contract import ContractOps
from llama2q import _core
from reference import Forward
from reference_weights import Shape
from strategies import assert_same_bits

ISAS = _core.isas()
KINDS = ("f32", "f16", "bf16", "int8", "int4", "int4-uniform")


def prompt(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_short_prompt(isa: str, kind: str) -> None:
    weights = random_weights(TINY, kind)
    ids = prompt(9, TINY.vocab_size)
    expected = Forward(weights, ContractOps()).step(np.array(ids))
    assert_same_bits(run(core_model(weights, isa=isa), ids), expected)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_two_chunks_of_attention(kv_dtype: str) -> None:
    shape = Shape(dim=24, hidden_dim=20, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=17)
    weights = random_weights(shape, "int8")
    ids = prompt(270, shape.vocab_size)
    expected = Forward(weights, ContractOps(), kv_dtype).step(np.array(ids))
    assert_same_bits(run(core_model(weights, kv_dtype), ids), expected)


@pytest.mark.parametrize("group_size", [64, 128])
def test_larger_groups(group_size: int) -> None:
    weights = random_weights(TINY, "int4", group_size, seed=3)
    ids = prompt(5, TINY.vocab_size)
    expected = Forward(weights, ContractOps()).step(np.array(ids))
    assert_same_bits(run(core_model(weights), ids), expected)


def test_hidden_states() -> None:
    weights = random_weights(TINY, "int8")
    ids = np.array(prompt(5, TINY.vocab_size), np.int32)
    expected = Forward(weights, ContractOps()).hidden(ids)
    n = np.arange(5, dtype=np.int32)
    rows = core_model(weights).step(
        ids, n, np.zeros(5, np.int32), np.zeros((1, 1), np.int32), n, "hidden"
    )
    assert_same_bits(rows, expected)
