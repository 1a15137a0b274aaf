"""config.json: both spellings of rope, defaults, and models that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.hf_files import hf_config
from converter.pth_files import SMALL
from llama2q.converter.hf_config import HfConfig, read_config
from llama2q.errors import ParamsError, UnreadableFileError, UnsupportedModelError
from llama2q.rope_scaling import RopeScaling


def read(folder: Path, **changes: Any) -> HfConfig:
    values = hf_config(SMALL.config) | changes
    values = {name: value for name, value in values.items() if value != "absent"}
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return read_config(path)


def test_the_whole(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.model == SMALL.config
    assert (found.vocab_size, found.tied, found.eos_ids, found.notes) == (4096, False, (), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1000000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "type": "default"}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_theta": "absent", "rope_scaling": "absent",
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 1.0}},
    ],
)  # fmt: skip
def test_spellings_of_rope(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = read(tmp_path, **changes)
    assert found.model.rope_theta == 1e6
    assert found.notes == ()


def scaling(kind: Any, factor: float, original: int = 4096, **more: Any) -> RopeScaling:
    return RopeScaling(scaling=kind, factor=factor, original_max_seq_len=original, **more)


SCALED: list[tuple[dict[str, Any], dict[str, Any], RopeScaling, int]] = [
    ({"type": "linear", "factor": 8.0}, {}, scaling("linear", 8.0), 32768),
    ({"rope_type": "linear", "factor": 4}, {}, scaling("linear", 4.0), 16384),
    (  # Vicuna 1.5 16k
        {"type": "linear", "factor": 4.0},
        {"max_sequence_length": 16000},
        scaling("linear", 4.0),
        16000,
    ),
    ({"type": "yarn", "factor": 16.0}, {}, scaling("yarn", 16.0), 65536),
    (  # YaRN's own Llama 2 models
        {
            "type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "finetuned": True,
        },
        {"max_position_embeddings": 65536},
        scaling("yarn", 16.0),
        65536,
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 2,
            "attention_factor": 0.5,
            "beta_fast": 16,
            "beta_slow": None,
            "truncate": False,
        },
        {"max_position_embeddings": None},
        scaling("yarn", 2.0, 2048, attention_factor=0.5, beta_fast=16.0, truncate=False),
        4096,
    ),
    ({"type": "yarn", "factor": 1.0}, {}, RopeScaling(), 4096),
]


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("settings", "more", "rope", "length"), SCALED)
def test_scaled_positions(
    tmp_path: Path,
    key: str,
    settings: Any,
    more: dict[str, Any],
    rope: RopeScaling,
    length: int,
) -> None:
    found = read(tmp_path, **{key: settings}, **more)
    assert found.rope == rope
    assert found.model.max_seq_len == length
    for note in found.notes:
        assert f"tokens become {length}" in note
    assert len(found.notes) == (rope.scaling != "none")


@pytest.mark.parametrize(
    "settings", [{"type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2}]
)
def test_dynamic_scaling_acts_beyond_the_context_only(tmp_path: Path, settings: Any) -> None:
    found = read(tmp_path, rope_scaling=settings)
    (note,) = found.notes
    assert "acts only beyond 4096 tokens" in note
    assert "up to 8192" in note
    assert found.rope == scaling("dynamic", 2.0)
    assert found.model.max_seq_len == 4096


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"type": "yarn", "factor": 16.0, "mscale": 0.7}, "of type yarn has .*mscale"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "of type linear has .*beta_fast"),
        ({"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "a part of each head"),
        ({"rope_type": "longrope"}, "of type 'longrope'"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "of type 'llama3'",
        ),
        ({"full_attention": {"rope_type": "default"}}, "differs by layer"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "rotates a part of each head"),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaling_that_is_refused(tmp_path: Path, key: str, settings: Any, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: {key} .*{named}"):
        read(tmp_path, **{key: settings})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        ({"rope_scaling": {"type": 3}}, "expected its type as a text"),
        ({"rope_scaling": {"type": "linear"}}, "has no factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5; expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": 1e9}}, "expected a number"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2},
                "rope_parameters": {"type": "linear", "factor": 4},
            },
            "differ; keep one",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4}, "max_sequence_length": 4095},
            "max_sequence_length is 4095",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}},
            "original_max_seq_len is 0",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_slow": 33}}, "beta_slow is 33"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 1}}, "truncate is 1"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "names two types"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "gives rope_theta twice: 10000 and 500000"),
        ({"rope_theta": 0}, "rope_theta is 0; expected a number"),
        ({"rope_theta": -1}, "rope_theta is -1; expected a number"),
        ({"rope_theta": "1e4"}, "expected a number"),
        ({"rms_norm_eps": "absent"}, "config.json lacks rms_norm_eps"),
        ({"rms_norm_eps": 2}, "rms_norm_eps is 2; expected a number"),
        ({"hidden_size": None, "num_hidden_layers": None}, "lacks hidden_size, num_hidden_layers"),
        ({"hidden_size": 16.0}, "hidden_size is 16.0; expected a positive integer"),
        ({"hidden_size": True}, "expected a positive integer"),
        ({"hidden_size": 10**400}, "expected a positive integer"),
        ({"num_attention_heads": 5}, "describes no Llama model: dim 16 is not a multiple"),
        ({"num_key_value_heads": 3}, "describes no Llama model: n_heads 4 is not a multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; expected an id or a list"),
        ({"eos_token_id": [2, -1]}, "expected an id or a list"),
        ({"model_type": "absent", "architectures": "absent"}, "names no model_type"),
    ],
)
def test_values_that_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ParamsError, match=match):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "mistral", "sliding_window": 4096},
            "model_type 'mistral'; .*Llama 2's arc",
        ),
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures .*only .LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": []}, "architectures"),
        ({"sliding_window": 4096}, "sliding_window is 4096; .*within a sliding window"),
        ({"attention_bias": True}, "attention_bias is True; .*biases in attention"),
        ({"mlp_bias": True}, "mlp_bias is True; .*biases in the feed-forward"),
        ({"partial_rotary_factor": 0.5}, "rotating a part"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"head_dim": 8}, "head_dim 8; .*num_attention_heads = 4 only"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized .*: 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantized already"),
        ({"quantization_config": "fp8"}, "'fp8'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
        ({"bos_token_id": 128000}, "bos_token_id is 128000; .*Llama 3"),
        ({"bos_token_id": True}, "bos_token_id is True"),
        ({"num_local_experts": 8}, "experts"),
        ({"logits_scaling": 16}, "multipliers"),
    ],
)
def test_models_that_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        read(tmp_path, **changes)


def test_what_changes_nothing_is_taken(tmp_path: Path) -> None:
    found = read(
        tmp_path, head_dim=4, attention_bias=None, num_key_value_heads=None, bos_token_id=0,
        eos_token_id=[1, 2, 4000], logits_scaling=1, partial_rotary_factor=1.0, sliding_window=None,
        use_sliding_window=False, architectures=["LLaMAForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    assert found.model.n_kv_heads == 4
    assert found.eos_ids == (4000,)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ParamsError, match=r"config\.json is missing in"):
        read_config(path)
    for content, match in (
        (b"[]", "holds a list; expected an object"),
        (b"{", "is not valid JSON"),
        (b'{"a":1,"a":2}', "a key appears twice"),
        (b"<html>", "is a web page: the download failed; log in"),
        (b" " * (1 << 20) + b"{}", "has over"),
    ):
        path.write_bytes(content)
        with pytest.raises(ParamsError, match=match):
            read_config(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreadableFileError, match="is no ordinary file"):
        read_config(path)
