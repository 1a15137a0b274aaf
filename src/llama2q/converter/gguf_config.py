"""The hyperparameters of a GGUF file, and what of them this engine cannot compute.

Source of the keys: ggml-org/ggml, docs/gguf.md, and the package gguf, `constants.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llama2q.config import ModelConfig
from llama2q.converter.gguf_rope import check_ramp, read_rope
from llama2q.converter.gguf_values import GgufValues
from llama2q.converter.json_file import shown
from llama2q.errors import InvalidArgumentError, ParamsError, UnsupportedModelError
from llama2q.rope_scaling import RopeScaling

_ARCHITECTURE = "llama"
_PREFIX = "llama."
_KINDS = {
    "adapter": "a LoRA adapter, no model; merge it into its model first",
    "imatrix": "an importance matrix, no model",
    "mmproj": "a projector of images or sounds, no language model",
}
_READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}
_WITHOUT = {
    "attention.causal": (True, "attention to later tokens"),
    "attention.clamp_kqv": (0, "clipping of q, k and v"),
    "attention.max_alibi_bias": (0, "ALiBi positions"),
    "attention.output_scale": (0, "multipliers"),
    "attention.scale": (0, "another scale of attention"),
    "attention.sliding_window": (0, "attention within a sliding window"),
    "attn_logit_softcapping": (0, "soft caps"),
    "embedding_scale": (0, "multipliers"),
    "expert_count": (0, "experts"),
    "expert_used_count": (0, "experts"),
    "final_logit_softcapping": (0, "soft caps"),
    "logit_scale": (0, "multipliers"),
    "pooling_type": (0, "embeddings of texts"),
    "residual_scale": (0, "multipliers"),
    "rope.scale": (1, "scaled positions"),
    "use_parallel_residual": (False, "layers side by side"),
}
"""Keys that may be there, each with the value that changes nothing, and what others ask for."""
_HARMLESS = re.compile(r"tensor_data_layout|rope\.scaling\.(finetuned|yarn_.*)")
"""Keys without effect, or with one that `gguf_rope` checks."""


@dataclass(frozen=True, slots=True)
class GgufConfig:
    """What the keys say.

    Attributes
    ----------
    model : ModelConfig
    rope : RopeScaling
    notes : tuple of str
        What a user should know.
    """

    model: ModelConfig
    rope: RopeScaling
    notes: tuple[str, ...]


def read_config(values: GgufValues, n_rows: int) -> GgufConfig:
    """Read and check the hyperparameters.

    Parameters
    ----------
    values : GgufValues
    n_rows : int
        Rows of the embedding table.

    Raises
    ------
    ParamsError
        A key is missing or holds a value of a wrong type.
    UnsupportedModelError
        The file describes a model that this engine does not compute.
    """
    where = values.where
    notes = _refuse_others(values)
    n_heads = _size(values, "attention.head_count")
    vocab_size = values.integer(_PREFIX + "vocab_size")
    if vocab_size not in (None, n_rows):
        raise ParamsError(
            f"{where}: {_PREFIX}vocab_size is {vocab_size}; token_embd.weight has {n_rows} rows"
        )
    context = read_rope(values, _size(values, "context_length"))
    try:
        model = ModelConfig(
            dim=_size(values, "embedding_length"),
            hidden_dim=_size(values, "feed_forward_length"),
            n_layers=_size(values, "block_count"),
            n_heads=n_heads,
            n_kv_heads=_size(values, "attention.head_count_kv", n_heads),
            vocab_size=n_rows,
            norm_eps=_number(values, "attention.layer_norm_rms_epsilon", None, 1e-20, 0.1),
            max_seq_len=context.max_seq_len,
            rope_theta=_number(values, "rope.freq_base", 10000.0, 1.0, 1e12),
        )
    except InvalidArgumentError as error:
        raise ParamsError(f"{where} describes no Llama model: {error}") from error
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if _size(values, name, model.head_dim) != model.head_dim:
            raise UnsupportedModelError(
                f"{where}: {_PREFIX}{name} is {values.integer(_PREFIX + name)}; this engine "
                f"computes heads of embedding_length / head_count = {model.head_dim} only, and "
                "rotates them whole"
            )
    check_ramp(where, context.scaling, model)
    return GgufConfig(model, context.scaling, (*notes, *context.notes))


def _refuse_others(values: GgufValues) -> tuple[str, ...]:
    """Refuse what the engine does not compute; return notes on keys that it does not know."""
    where = values.where
    kind = values.text("general.type")
    if kind in _KINDS:
        raise UnsupportedModelError(f"{where} is {_KINDS[kind]}")
    architecture = values.text("general.architecture")
    if architecture != _ARCHITECTURE:
        raise UnsupportedModelError(
            f"{where} has the architecture {shown(architecture)}; this engine computes Llama 2's "
            f"only ({_ARCHITECTURE})"
        )
    unknown = []
    for key, found in values.values.items():
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX)
        if name in _WITHOUT:
            neutral, meaning = _WITHOUT[name]
            if isinstance(found, np.ndarray | tuple) or found != neutral:
                listed = found.tolist() if isinstance(found, np.ndarray) else found
                raise UnsupportedModelError(
                    f"{where}: {key} is {shown(listed)}; this engine does not compute {meaning}. "
                    "Take a model of Llama 2's own architecture"
                )
        elif name not in _READ and not _HARMLESS.fullmatch(name):
            unknown.append(key)
    if not unknown:
        return ()
    return (f"keys that are not known here have no effect: {', '.join(unknown[:4])}",)


def _size(values: GgufValues, name: str, default: int | None = None) -> int:
    return values.size(_PREFIX + name, default)


def _number(values: GgufValues, name: str, default: float | None, low: float, high: float) -> float:
    return values.bounded(_PREFIX + name, default, low, high)
