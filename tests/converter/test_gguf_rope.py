"""Scaled positions of GGUF files: what is read, what it computes, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import llama2q
from converter.gguf_files import gguf_file
from converter.hf_files import hf_folder
from converter.test_gguf_config import config
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.errors import Llama2qError, ParamsError, UnsupportedModelError
from llama2q.format import L2qFile
from llama2q.format.rope import attention_factor, inv_freq
from llama2q.rope_scaling import RopeScaling
from reference import linear_rope, yarn_rope

PREFIX = "llama__rope__scaling__"
OLD = "llama__rope__scale_linear"
NAN, INF = float("nan"), float("inf")


def read(old: Any = None, n_rows: int = 32000, **keys: Any) -> Any:
    """Read a model of 4096 tokens with keys of rope.scaling, and the older key."""
    others = {name: keys.pop(name) for name in list(keys) if name.startswith("llama__")}
    changes = {PREFIX + name: value for name, value in keys.items()}
    return config(n_rows, **{OLD: old}, **changes, **others)


def linear(factor: float, original: int = 4096) -> RopeScaling:
    return RopeScaling(scaling="linear", factor=factor, original_max_seq_len=original)


def yarn(factor: float, original: int = 4096, attention: float | None = None) -> RopeScaling:
    return RopeScaling(
        scaling="yarn",
        factor=factor,
        original_max_seq_len=original,
        attention_factor=attention,
    )


@pytest.mark.parametrize(
    ("keys", "expected", "max_seq_len"),
    [
        ({}, RopeScaling(), 4096),
        ({"type": "none"}, RopeScaling(), 4096),
        ({"type": "none", "factor": 1.0, "attn_factor": 1.0}, RopeScaling(), 4096),
        ({"type": "linear", "factor": 1.0}, RopeScaling(), 4096),
        ({"type": "yarn", "factor": 1.0, "original_context_length": 4096}, RopeScaling(), 4096),
        ({"old": 1.0}, RopeScaling(), 4096),
        ({"type": "linear", "factor": 4.0}, linear(4.0), 16384),
        ({"type": "linear", "factor": 4}, linear(4.0), 16384),
        ({"factor": 4.0}, linear(4.0), 16384),
        ({"old": 4.0}, linear(4.0), 16384),
        ({"type": "linear", "factor": 4.0, "old": 4.0}, linear(4.0), 16384),
        ({"type": "linear", "factor": float(np.float32(2.7))}, linear(2.7), 11059),
        ({"type": "linear", "factor": 4.0, "original_context_length": 1024},
         linear(4.0, 1024), 4096),
        ({"type": "linear", "factor": 4.0, "yarn_beta_fast": 8.0}, linear(4.0), 16384),
        ({"type": "yarn", "factor": 16.0, "original_context_length": 256, "finetuned": True},
         yarn(16.0, 256), 4096),
        ({"type": "yarn", "factor": 16.0}, yarn(16.0), 65536),
        ({"type": "yarn", "old": 16.0}, yarn(16.0), 65536),
        ({"type": "yarn", "factor": 16.0, "attn_factor": 1.0}, yarn(16.0), 65536),
        ({"type": "yarn", "factor": 16.0, "attn_factor": 0.5},
         yarn(16.0, attention=0.5 * attention_factor(yarn(16.0))), 65536),
        ({"type": "yarn", "factor": 1.0, "attn_factor": 0.5}, yarn(1.0, attention=0.5), 4096),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0,
          "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_log_multiplier": 0.0},
         yarn(4.0), 16384),
    ],
)  # fmt: skip
def test_read(keys: dict[str, Any], expected: RopeScaling, max_seq_len: int) -> None:
    found = read(**keys)
    assert found.rope == expected
    assert found.model.max_seq_len == max_seq_len
    assert bool(found.notes) == (expected.scaling != "none")


def test_note() -> None:
    (note,) = read(type="yarn", factor=16.0).notes
    assert note == "rope scaling 'yarn' (factor 16): 4096 tokens become 65536"


def test_attention_factor_multiplies_that_of_yarn() -> None:
    found = attention_factor(read(type="yarn", factor=16.0, attn_factor=0.5).rope)
    assert found == pytest.approx(0.5 * (1 + 0.1 * np.log(16.0)), rel=1e-15)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 0, -4.0, 0.5, 1000.5, 1e300, 2**63])
@pytest.mark.parametrize("kind", [None, "none", "linear", "yarn"])
@pytest.mark.parametrize("name", ["factor", "old"])
def test_wrong_factors(kind: str | None, name: str, value: Any) -> None:
    with pytest.raises(ParamsError, match=r"expected a number in \[1, 1000\]"):
        read(type=kind, **{name: value})


@pytest.mark.parametrize("value", [NAN, INF, 0.0, -1.0, 1e-4, 1001.0])
@pytest.mark.parametrize("kind", [None, "linear", "yarn"])
def test_wrong_attention_factors(kind: str | None, value: float) -> None:
    with pytest.raises(ParamsError, match="attn_factor is"):
        read(type=kind, factor=4.0, attn_factor=value)


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**63, 4096.0, "4096", True, np.array([1, 2])])
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_wrong_lengths(kind: str, value: Any) -> None:
    with pytest.raises(ParamsError, match="original_context_length"):
        read(type=kind, factor=4.0, original_context_length=value)


@pytest.mark.parametrize("value", ["4", True, np.array([4.0, 4.0], np.float32), (b"4",)])
@pytest.mark.parametrize("name", ["factor", "old", "attn_factor"])
def test_wrong_types(name: str, value: Any) -> None:
    with pytest.raises(ParamsError, match="expected a number"):
        read(type="yarn", **{"factor": 4.0, name: value})


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"type": "longrope"}, UnsupportedModelError, r"of type 'longrope' \(factor None\)"),
        ({"type": "YARN", "factor": 4.0}, UnsupportedModelError, "of type 'YARN'"),
        ({"type": "", "factor": 4.0}, UnsupportedModelError, "of type ''"),
        ({"type": 2, "factor": 4.0}, ParamsError, "expected a text"),
        ({"type": "linear"}, ParamsError, "has no llama.rope.scaling.factor"),
        ({"type": "yarn"}, ParamsError, "has no llama.rope.scaling.factor"),
        ({"type": "none", "factor": 4.0}, ParamsError, "'none', but there is a factor of 4"),
        ({"type": "none", "old": 4.0}, ParamsError, "'none', but there is a factor of 4"),
        ({"factor": 4.0, "old": 2.0}, ParamsError, "scale_linear differ"),
        ({"type": "linear", "factor": 4.0, "attn_factor": 2.0}, UnsupportedModelError,
         "attn_factor is 2; .* type yarn only"),
        ({"attn_factor": 2.0}, UnsupportedModelError, "attn_factor is 2"),
        ({"type": "yarn", "factor": 4.0, "attn_factor": 1000.0}, ParamsError, "attention_factor"),
        ({"type": "yarn", "factor": 4.0, "yarn_beta_fast": 16.0}, UnsupportedModelError,
         "yarn_beta_fast is 16.0; .* 32 only"),
        ({"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}, UnsupportedModelError,
         "yarn_log_multiplier is 0.1"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": NAN}, UnsupportedModelError,
         "yarn_ext_factor is nan"),
        ({"type": "yarn", "factor": 4.0, "alpha": 8.0}, UnsupportedModelError,
         "scaling.alpha is not known here"),
        ({"type": "yarn", "factor": 4.0, "llama__rope__freq_base": 1.0}, ParamsError,
         "not defined for rope_theta 1"),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 1}, UnsupportedModelError,
         "ramp that ends before it begins"),
        ({"type": "yarn", "factor": 4.0, "llama__rope__freq_base": 1.01}, UnsupportedModelError,
         "ramp that ends before it begins"),
    ],
)  # fmt: skip
def test_refused(keys: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        read(**keys)


@pytest.mark.parametrize("original", [1, 2, 4, 16, 100, 201, 202, 4096, 2**31 - 1])
@pytest.mark.parametrize("theta", [1.01, 1.5, 10.0, 10000.0, 1e12])
def test_frequencies_of_yarn(theta: float, original: int) -> None:
    """Those of the ramp as llama.cpp has it; what this engine makes of others is refused."""
    expected = yarn_rope(128, theta, 8.0, original)
    keys = {"original_context_length": original, "llama__rope__freq_base": theta}
    try:
        found = read(type="yarn", factor=8.0, **keys).rope
    except UnsupportedModelError:
        own = inv_freq(theta, 128, yarn(8.0, original))
        assert np.abs(own / expected.inv_freq - 1).max() > 0.1
        return
    np.testing.assert_allclose(inv_freq(theta, 128, found), expected.inv_freq, rtol=1e-12)
    assert attention_factor(found) == pytest.approx(expected.factor, rel=1e-15)


def keys_of(kind: str) -> Any:
    def keys(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(4096)

    return keys


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_the_same_file_as_from_hugging_face(
    kind: str, mini_checkpoint: Path, tmp_path: Path
) -> None:
    """A GGUF file and a config.json that ask for the same scaling become the same model."""
    source = gguf_file(tmp_path / "mini.gguf", mini_checkpoint, keys=keys_of(kind))
    settings = {"rope_type": kind, "factor": 4.0}
    folder = hf_folder(tmp_path / "mini", mini_checkpoint, rope_scaling=settings)
    logits = []
    for number, checkpoint in enumerate((source, folder)):
        path = tmp_path / f"{number}.l2q"
        llama2q.convert(checkpoint, path, method="rtn", chat_template="none", group_size=64)
        with L2qFile(path) as file:
            assert list(file.faults()) == []
            assert file.metadata.rope == RopeScaling(
                scaling=kind,  # type: ignore[arg-type]
                factor=4.0,
                original_max_seq_len=4096,
            )
            shape = file.config
            assert shape.max_seq_len == 16384
            make = linear_rope(shape.head_dim, shape.rope_theta, 4.0)
            if kind == "yarn":
                make = yarn_rope(shape.head_dim, shape.rope_theta, 4.0, 4096)
            np.testing.assert_allclose(file.array("rope.inv_freq"), make.inv_freq, rtol=1e-12)
        with llama2q.load(path, kv_dtype="int8") as llm:
            logits.append(llm.logits(llm.tokenizer.encode("Once upon a time " * 20)))
    np.testing.assert_array_equal(*logits)


def test_factors_of_frequencies_stay_refused(mini_checkpoint: Path, tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.full(16, 2, np.float32))

    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, keys=keys_of("yarn"), more=more)
    with (
        pytest.raises(UnsupportedModelError, match="scales the rotary frequencies"),
        GgufCheckpoint.open(path),
    ):
        pass


def test_every_refusal_is_of_the_package() -> None:
    """No combination of odd values ends in another exception."""
    odd = (None, NAN, INF, 0, -1, 1, 2**63, 1e-300, 1000.0, "x", True, np.zeros(0), (b"",))
    for kind in (None, "none", "linear", "yarn", "x", 1, NAN):
        for name in ("factor", "old", "attn_factor", "original_context_length", "yarn_beta_slow"):
            for value in odd:
                try:
                    read(**{"type": kind, "factor": 4.0, name: value})
                except Llama2qError:
                    continue
