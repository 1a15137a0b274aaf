"""The tensor list, the recipe, the frequencies and the example of FORMAT.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import llama2q
from llama2q.config import ModelConfig
from llama2q.errors import InvalidArgumentError
from llama2q.format import Recipe, TensorType
from llama2q.format.layout import TensorSpec, place, tensor_specs
from llama2q.format.rope import inv_freq
from llama2q.quant import grid_values, int4
from numpy_quantizers import SMALL

FORMAT_MD = Path(llama2q.__file__).with_name("FORMAT.md")


def test_list_of_tensors() -> None:
    config = ModelConfig(
        dim=48, hidden_dim=172, n_layers=1, n_heads=3, n_kv_heads=1, vocab_size=37, norm_eps=1e-5
    )
    specs = tensor_specs(config, Recipe.for_model(config, "int4", group_size=32), 99)
    assert [(s.name, s.dtype, s.shape) for s in specs] == [
        ("tok_embeddings.weight.codes", "I8", (37, 48)),
        ("tok_embeddings.weight.scales", "F16", (37, 2)),
        ("rope.inv_freq", "F64", (8,)),
        ("layers.0.attention_norm.weight", "F32", (48,)),
        ("layers.0.attention.wq.weight.codes", "U8", (3, 8, 64)),
        ("layers.0.attention.wq.weight.scales", "F16", (3, 2, 16)),
        ("layers.0.attention.wk.weight.codes", "U8", (1, 8, 64)),
        ("layers.0.attention.wk.weight.scales", "F16", (1, 2, 16)),
        ("layers.0.attention.wv.weight.codes", "U8", (1, 8, 64)),
        ("layers.0.attention.wv.weight.scales", "F16", (1, 2, 16)),
        ("layers.0.attention.wo.weight.codes", "U8", (3, 8, 64)),
        ("layers.0.attention.wo.weight.scales", "F16", (3, 2, 16)),
        ("layers.0.ffn_norm.weight", "F32", (48,)),
        ("layers.0.feed_forward.w1_w3.weight.codes", "U8", (22, 8, 64)),
        ("layers.0.feed_forward.w1_w3.weight.scales", "F16", (22, 2, 16)),
        ("layers.0.feed_forward.w2.weight.codes", "U8", (3, 24, 64)),
        ("layers.0.feed_forward.w2.weight.scales", "F16", (3, 6, 16)),
        ("norm.weight", "F32", (48,)),
        ("output.weight.codes", "I8", (3, 16, 64)),
        ("output.weight.scales", "F16", (3, 2, 16)),
        ("tokenizer.model", "U8", (99,)),
    ]
    dense = tensor_specs(config, Recipe.for_model(config, "none", dtype="f16"), 99)
    assert [(s.name, s.dtype, s.shape) for s in dense if "w" in s.name.split(".")[-2][:1]] == [
        ("layers.0.attention.wq.weight", "F16", (3, 48, 16)),
        ("layers.0.attention.wk.weight", "F16", (1, 48, 16)),
        ("layers.0.attention.wv.weight", "F16", (1, 48, 16)),
        ("layers.0.attention.wo.weight", "F16", (3, 48, 16)),
        ("layers.0.feed_forward.w1_w3.weight", "F16", (22, 48, 16)),
        ("layers.0.feed_forward.w2.weight", "F16", (3, 172, 16)),
    ]
    assert dense[0] == TensorSpec("tok_embeddings.weight", "F16", (37, 48))


def test_bytes_of_the_real_shapes() -> None:
    """The sizes that issue from 4.25 bits per weight, with exact integers."""
    config = ModelConfig(
        dim=8192, hidden_dim=28672, n_layers=80, n_heads=64, n_kv_heads=8, vocab_size=32000,
        norm_eps=1e-5,
    )  # fmt: skip
    specs = tensor_specs(config, Recipe.for_model(config), 500_000)
    layers = sum(s.nbytes for s in specs if s.name.startswith("layers.") and "norm" not in s.name)
    weights = 80 * (8192 * 8192 * 2 + 2 * 1024 * 8192 + 3 * 8192 * 28672)
    assert layers * 8 * 4 == weights * 17


def test_pads() -> None:
    placed = place([TensorSpec("a", "U8", (1,)), TensorSpec("b", "U8", (64,)),
                    TensorSpec("c", "F16", (33,))])  # fmt: skip
    assert [(p.spec.name, p.begin, p.end) for p in placed] == [
        ("a", 0, 1), ("pad.0", 1, 64), ("b", 64, 128), ("c", 128, 194), ("pad.1", 194, 256),
    ]  # fmt: skip


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
def test_recipe_round_trip(quant: str) -> None:
    recipe = Recipe.for_model(SMALL, quant)
    recipe.check(SMALL)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.is_quantized == (quant != "none")


def test_recipe_faults() -> None:
    for arguments, match in (
        ({"quant": "int2"}, "quant is 'int2'"),
        ({"group_size": 16}, "group_size is 16"),
        ({"grid": "log"}, "grid is 'log'"),
        ({"quant": "none", "dtype": "f64"}, "type is 'f64'"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            Recipe.for_model(SMALL, **arguments)
    with pytest.raises(InvalidArgumentError, match="no groups"):
        TensorType("f32", 64)
    with pytest.raises(InvalidArgumentError, match="no grid"):
        TensorType("int8", 64, "uniform")


def test_inv_freq_is_correctly_rounded() -> None:
    # theta^(-2i/d) is a root of a rational number, so neighbours can be told apart exactly.
    from fractions import Fraction

    theta, head_dim = 10000, 128
    found = inv_freq(float(theta), head_dim)
    assert found.dtype == np.float64
    assert found[0] == 1.0
    assert found[32] == 0.01
    for i, value in enumerate(found):
        # value is right if theta^-2i lies between the d-th powers of the midpoints around it.
        below = (Fraction(float(value)) + Fraction(float(np.nextafter(value, 0)))) / 2
        above = (Fraction(float(value)) + Fraction(float(np.nextafter(value, 2)))) / 2
        assert below**head_dim < Fraction(1, theta ** (2 * i)) < above**head_dim


def test_example_of_format_md() -> None:
    blocks = re.findall(r"```hex\n(.*?)```", FORMAT_MD.read_text(encoding="utf-8"), re.DOTALL)
    line, scales = (bytes.fromhex(block) for block in blocks)
    weights = np.array(
        [[-8, -7, -6, -5, -4, -3, -2, -1], [7, 6, 5, 4, 3, 2, 1, -8]], dtype=np.float32
    )
    codes, found_scales = int4.encode(weights, 32, grid_values("uniform"))
    assert codes.shape == (1, 4, 64)
    assert codes.tobytes() == line + bytes(192)
    assert found_scales.tobytes() == scales
