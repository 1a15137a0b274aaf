"""Hugging Face's `config.json` of a Llama model, and what of it this engine cannot compute.

Source of keys and defaults: huggingface/transformers, `configuration_llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2q.config import ModelConfig
from llama2q.converter.hf_rope import is_same, number, read_rope
from llama2q.converter.json_file import read_json_object, shown
from llama2q.errors import (
    InvalidArgumentError,
    ParamsError,
    UnreadableFileError,
    UnsupportedModelError,
)
from llama2q.rope_scaling import RopeScaling

ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
"""The second is an early spelling."""
BOS_IDS, EOS_IDS = (0, 1), (1, 2)
"""Ids that stand for Llama 2's tokens 1 and 2; the lower ones were early mistakes."""

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "rms_norm_eps")  # fmt: skip
_WITHOUT = {
    "attention_bias": (False, "biases in attention"),
    "qkv_bias": (False, "biases in attention"),
    "mlp_bias": (False, "biases in the feed-forward layers"),
    "sliding_window": (None, "attention within a sliding window"),
    "use_sliding_window": (False, "attention within a sliding window"),
    "partial_rotary_factor": (1.0, "rotating a part of each head"),
    "clip_qkv": (None, "clipping of q, k and v"),
    "alibi": (False, "ALiBi positions"),
    "num_experts": (0, "experts"),
    "num_local_experts": (0, "experts"),
    "attn_logit_softcapping": (None, "soft caps"),
    "final_logit_softcapping": (None, "soft caps"),
    "embedding_multiplier": (1.0, "multipliers"),
    "residual_multiplier": (1.0, "multipliers"),
    "logits_scaling": (1.0, "multipliers"),
}
"""Keys of related models: the value that changes nothing beside null, and what others ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfConfig:
    """What `config.json` says.

    Attributes
    ----------
    model : ModelConfig
        With a vocabulary of 1 where the file names none.
    vocab_size : int or None
    tied : bool
        Whether the output matrix is the embedding table.
    eos_ids : tuple of int
        Tokens that end a text, besides `</s>`.
    rope : RopeScaling
    notes : tuple of str
        What a user should know.
    """

    model: ModelConfig
    vocab_size: int | None
    tied: bool
    eos_ids: tuple[int, ...]
    rope: RopeScaling
    notes: tuple[str, ...]


def read_config(path: Path) -> HfConfig:
    """Read and check `config.json`.

    Raises
    ------
    ParamsError
        It is absent, is no JSON object, lacks a key or holds a value of a wrong type.
    UnsupportedModelError
        It describes a model that this engine does not compute.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise UnreadableFileError(f"{path.name} is no ordinary file; download it again")
        raise ParamsError(
            f"config.json is missing in {path.parent}; in a Hugging Face checkpoint it lies beside "
            "the weights. Download it too"
        )
    values = read_json_object(path, ParamsError, hub=True)
    _refuse_others(values)
    sizes: dict[str, Any] = {name: _size(values, name) for name in _SIZES}
    missing = [name for name in _REQUIRED if values.get(name) is None]
    if missing:
        raise ParamsError(f"config.json lacks {', '.join(missing)}; download it again")
    rope = read_rope(values, sizes["max_position_embeddings"])
    try:
        model = ModelConfig(
            dim=sizes["hidden_size"],
            hidden_dim=sizes["intermediate_size"],
            n_layers=sizes["num_hidden_layers"],
            n_heads=sizes["num_attention_heads"],
            n_kv_heads=sizes["num_key_value_heads"] or sizes["num_attention_heads"],
            vocab_size=sizes["vocab_size"] or 1,
            norm_eps=number(values, "rms_norm_eps", 1e-20, 0.1),
            max_seq_len=rope.context.max_seq_len,
            rope_theta=rope.theta,
        )
    except InvalidArgumentError as error:
        raise ParamsError(f"config.json describes no Llama model: {error}") from error
    if sizes["head_dim"] not in (None, model.head_dim):
        raise UnsupportedModelError(
            f"config.json says head_dim {sizes['head_dim']}; this engine computes heads of "
            f"hidden_size / num_attention_heads = {model.head_dim} only"
        )
    return HfConfig(
        model=model,
        vocab_size=sizes["vocab_size"],
        tied=_flag(values, "tie_word_embeddings"),
        eos_ids=_special_ids(values),
        rope=rope.context.scaling,
        notes=rope.context.notes,
    )


def _refuse_others(values: Mapping[str, Any]) -> None:
    kind, architectures = values.get("model_type"), values.get("architectures")
    if kind is None and architectures is None:
        raise ParamsError("config.json names no model_type; expected llama. Download it again")
    if kind not in (None, "llama"):
        raise _unsupported(f"model_type {shown(kind)}", "model_type llama")
    if architectures is not None and not (
        isinstance(architectures, list)
        and len(architectures) == 1
        and architectures[0] in ARCHITECTURES
    ):
        raise _unsupported(f"architectures {shown(architectures)}", ARCHITECTURES[0])
    quantized = values.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedModelError(
            "config.json: the weights are quantized already (quantization_config: "
            f"{shown(method)}); convert the unquantized model that they were made from"
        )
    if values.get("auto_map") is not None:
        raise UnsupportedModelError(
            "config.json names code of its own (auto_map), which is never run: what it computes is "
            "not known. If the model is a plain Llama, remove that key"
        )
    if values.get("hidden_act") not in (None, "silu"):
        raise _unsupported(f"hidden_act {shown(values['hidden_act'])}", "silu")
    for name, (neutral, meaning) in _WITHOUT.items():
        value = values.get(name)
        if value is not None and not is_same(value, neutral):
            raise UnsupportedModelError(
                f"config.json: {name} is {shown(value)}; this engine does not compute {meaning}. "
                "Take a model of Llama 2's own architecture"
            )


def _unsupported(found: str, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json says {found}; this engine computes Llama 2's architecture only ({expected})"
    )


def _special_ids(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Check the ids of BOS and EOS; return ends of text other than Llama 2's."""
    bos = values.get("bos_token_id")
    if bos is not None and not (type(bos) is int and bos in BOS_IDS):
        raise UnsupportedModelError(
            f"config.json: bos_token_id is {shown(bos)}; Llama 2's is 1 and this engine takes no "
            "other. Models of Llama 3 cannot be run"
        )
    eos = values.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if any(type(token) is not int or not 0 <= token < 2**31 for token in listed):
        raise ParamsError(f"config.json: eos_token_id is {shown(eos)}; expected an id or a list")
    return tuple(sorted({token for token in listed if token not in EOS_IDS}))


def _size(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value < 2**31:
        raise ParamsError(f"config.json: {name} is {shown(value)}; expected a positive integer")
    return value


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and type(value) is not bool:
        raise ParamsError(f"config.json: {name} is {shown(value)}; expected true or false")
    return bool(value)
