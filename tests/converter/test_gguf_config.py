"""Hyperparameters and tensors of GGUF files: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from converter.gguf_files import Kind, gguf_file
from converter.hf_files import Tensors, read_meta
from converter.pth_files import Make
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_config import read_config
from llama2q.converter.gguf_file import Value
from llama2q.converter.gguf_values import GgufValues
from llama2q.errors import (
    ChatTemplateError,
    InvalidArgumentError,
    ParamsError,
    TensorSetError,
    UnsupportedModelError,
)

KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 4096,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 11008,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
}


def config(n_rows: int = 32000, **changes: Any) -> Any:
    """Read `KEYS` with changes: dots written as __; None removes a key."""
    values = KEYS | {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in values.items() if value is not None}
    return read_config(GgufValues("x.gguf", kept), n_rows)


def test_llama_2_7b() -> None:
    found = config(llama__rope__freq_base=None)
    assert found.notes == ()
    assert found.model.to_dict() == {
        "dim": 4096, "hidden_dim": 11008, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
        "vocab_size": 32000, "norm_eps": 1e-5, "max_seq_len": 4096, "rope_theta": 10000.0,
    }  # fmt: skip
    assert config(llama__attention__head_count_kv=None).model.n_kv_heads == 32


def test_numbers_of_float32_are_those_that_were_meant() -> None:
    for value in (1e-5, 1e-6, 5e-6, 3.3e-7):
        name = "llama__attention__layer_norm_rms_epsilon"
        assert config(**{name: float(np.float32(value))}).model.norm_eps == value
    assert config(llama__rope__freq_base=1e6).model.rope_theta == 1e6
    assert config(llama__rope__freq_base=500000).model.rope_theta == 5e5


def test_harmless_keys() -> None:
    found = config(
        llama__vocab_size=32000,
        llama__rope__dimension_count=128,
        llama__attention__key_length=128,
        llama__attention__head_count_kv=np.full(32, 8, np.int32),
        llama__rope__scaling__type="none",
        llama__rope__scaling__factor=1.0,
        llama__rope__scaling__original_context_length=4096,
        llama__rope__scaling__finetuned=False,
        llama__expert_count=0,
        llama__attention__causal=True,
        llama__attention__sliding_window=0,
        llama__tensor_data_layout="Meta AI original pth",
        other__key=1,
    )
    assert found == config()
    assert config(llama__rope__scaling__type="linear", llama__rope__scaling__factor=1.0) == config()
    found = config(llama__new_thing=1)
    assert found.model == config().model
    assert found.notes == ("keys that are not known here have no effect: llama.new_thing",)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"general__architecture": "qwen2"}, UnsupportedModelError, "architecture 'qwen2'"),
        ({"general__architecture": None}, UnsupportedModelError, "architecture None"),
        ({"general__type": "adapter"}, UnsupportedModelError, "is a LoRA adapter, no model"),
        ({"general__type": "imatrix"}, UnsupportedModelError, "is an importance matrix"),
        ({"llama__block_count": None}, ParamsError, "lacks llama.block_count"),
        ({"llama__block_count": 0}, ParamsError, "llama.block_count is 0"),
        ({"llama__block_count": 2**31}, ParamsError, "llama.block_count is 2147483648"),
        ({"llama__block_count": "32"}, ParamsError, "is '32'; expected an integer"),
        ({"llama__block_count": True}, ParamsError, "is True; expected an integer"),
        ({"llama__context_length": None}, ParamsError, "lacks llama.context_length"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, ParamsError, "lacks llama.attention"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, ParamsError, "is nan"),
        ({"llama__attention__head_count": 33}, ParamsError, "describes no Llama model: dim 4096"),
        ({"llama__attention__head_count_kv": np.array([8, 4])}, ParamsError, "differs by layer"),
        ({"llama__vocab_size": 32001}, ParamsError, "vocab_size is 32001; token_embd.weight has"),
        ({"llama__rope__freq_base": 0.5}, ParamsError, "freq_base is 0.5"),
        ({"llama__rope__freq_base": float("inf")}, ParamsError, "freq_base is inf"),
        ({"llama__rope__dimension_count": 64}, UnsupportedModelError, "dimension_count is 64"),
        ({"llama__attention__key_length": 256}, UnsupportedModelError, "key_length is 256"),
        ({"llama__rope__scale": 4.0}, UnsupportedModelError, "scaled positions"),
        ({"llama__expert_count": 8}, UnsupportedModelError, "expert_count is 8; .* experts"),
        ({"llama__attention__sliding_window": 4096}, UnsupportedModelError, "sliding window"),
        ({"llama__attention__causal": False}, UnsupportedModelError, "later tokens"),
        ({"llama__attention__clamp_kqv": 8.0}, UnsupportedModelError, "clipping"),
        ({"llama__logit_scale": 0.1}, UnsupportedModelError, "multipliers"),
        ({"llama__final_logit_softcapping": 30.0}, UnsupportedModelError, "soft caps"),
        ({"llama__attention__sliding_window": np.array([0, 1])}, UnsupportedModelError, "window"),
    ],
)  # fmt: skip
def test_refused_keys(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        config(**changes)


def refused(path: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match), GgufCheckpoint.open(path):
        pass


def test_every_tensor(make: Make, tmp_path: Path) -> None:
    meta, shape = read_meta(make())
    with GgufCheckpoint.open(gguf_file(tmp_path / "x.gguf", make())) as checkpoint:
        assert checkpoint.config == shape
        assert checkpoint.dtype == "bf16"
        assert list(checkpoint.shapes) == list(meta)
        for name, weights in meta.items():
            found = checkpoint.read(name)
            expected = weights if weights.ndim == 2 else weights.astype(np.uint32) << 16
            assert np.array_equal(found.view(expected.dtype), expected)
            assert not found.flags.writeable
            checkpoint.release(name)
            checkpoint.check_crc(name)
        with pytest.raises(InvalidArgumentError, match="has no tensor 'x'"):
            checkpoint.read("x")


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def cut(tensors: Tensors) -> None:
    tensors["blk.1.attn_k.weight"] = tensors["blk.1.attn_k.weight"][:4]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (drop("token_embd.weight"), TensorSetError, r"no embedding table \(token_embd"),
        (drop("blk.1.ffn_gate.weight"), TensorSetError, r"missing 1 \(blk.1.ffn_gate.weight\)"),
        (drop("output_norm.weight"), TensorSetError, "missing 1"),
        (cut, TensorSetError, r"blk.1.attn_k.weight has the shape \(4, 16\); its keys make it"),
    ],
)
def test_refused_tensors(
    make: Make, tmp_path: Path, change: Any, error: type[Exception], match: str
) -> None:
    refused(gguf_file(tmp_path / "x.gguf", make(), change=change), error, match)


@pytest.mark.parametrize(
    ("name", "shape", "error", "match"),
    [
        ("blk.0.attn_q.bias", (16,), UnsupportedModelError, "does not compute biases"),
        ("blk.0.ffn_gate_inp.weight", (8, 16), UnsupportedModelError, "does not compute experts"),
        ("blk.0.ffn_up_exps.weight", (2, 8, 16), UnsupportedModelError, "not compute experts"),
        ("blk.0.ffn_up.3.weight", (8, 16), UnsupportedModelError, "does not compute experts"),
        ("blk.0.attn_q_norm.weight", (4,), TensorSetError, r"unexpected 1 \(blk.0.attn_q_norm"),
        ("rope_freqs.weight", (2,), UnsupportedModelError, "scales the rotary frequencies"),
        ("rope_freqs.weight", (4, 1 << 12), TensorSetError, "expected a few F32"),
    ],
)
def test_tensors_of_other_models(
    make: Make, tmp_path: Path, name: str, shape: Any, error: type[Exception], match: str
) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_tensor(name, np.full(shape, 2, np.float32))

    refused(gguf_file(tmp_path / "x.gguf", make(), more=more), error, match)


def test_factors_of_one(make: Make, tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))

    with GgufCheckpoint.open(gguf_file(tmp_path / "x.gguf", make(), more=more)) as checkpoint:
        assert "rope.freqs" not in checkpoint.shapes


def test_more_layers_than_tensors(make: Make, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", make(), keys=lambda writer: writer.add_block_count(10**9))
    refused(path, TensorSetError, "its keys say 1000000000 layers")


def test_an_old_quantization(mini_checkpoint: Path, tmp_path: Path) -> None:
    def write(version: int) -> Path:
        return gguf_file(
            tmp_path / "x.gguf",
            mini_checkpoint,
            Kind.Q8_0,
            keys=lambda writer: writer.add_quantization_version(version),
        )

    refused(write(1), TensorSetError, "quantization_version is 1; expected 2")
    GgufCheckpoint.open(write(2)).close()


def test_names_and_notes(make: Make, tmp_path: Path) -> None:
    def keys(writer: GGUFWriter) -> None:
        writer.add_name("Llama 2: Small/Chat")
        writer.add_license("llama2")

    path = gguf_file(tmp_path / "sha256-00", make(), keys=keys)
    with GgufCheckpoint.open(path) as checkpoint:
        assert checkpoint.name == "Llama-2-Small-Chat"
        assert checkpoint.notes == ("a GGUF file: name 'Llama 2: Small/Chat', license 'llama2'",)
        assert checkpoint.template == "llama2-chat"
    for file, name in (
        ("small.Q4_0.gguf", "small"),
        ("Small-7b-chat-q4_k_m.gguf", "Small-7b-chat"),
        ("small-f16.gguf", "small"),
        ("small.gguf", "small"),
    ):
        with GgufCheckpoint.open(path.rename(tmp_path / file)) as checkpoint:
            assert checkpoint.name == name
        path = tmp_path / file


def test_chat_templates(make: Make, tmp_path: Path) -> None:
    def write(text: str, name: str = "x.gguf") -> Path:
        return gguf_file(
            tmp_path / name, make(), keys=lambda writer: writer.add_chat_template(text)
        )

    with GgufCheckpoint.open(write("<|im_start|>user<|im_end|>")) as checkpoint:
        assert checkpoint.template == "chatml"
    with GgufCheckpoint.open(write("{{ x }}")) as checkpoint:
        with pytest.raises(ChatTemplateError, match="looks like none"):
            _ = checkpoint.template
    refused(write("x" * (1 << 19)), ChatTemplateError, "x.gguf: the chat template has over")
    with GgufCheckpoint.open(gguf_file(tmp_path / "y.gguf", make())) as checkpoint:
        assert checkpoint.template == "base"
