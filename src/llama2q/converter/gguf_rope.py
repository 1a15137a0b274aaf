"""What the keys of a GGUF file say of scaled positions.

Source of the keys: ggml-org/ggml, docs/gguf.md. Their defaults and what they compute are
llama.cpp's (`llama-model.cpp`, `llama-context.cpp`, `ggml-cpu/ops.cpp`): a factor without a type is
linear, the original context is context_length where none is given, and cos and sin are multiplied
by attn_factor, with YaRN by attn_factor * (0.1 ln(factor) + 1).
"""

from __future__ import annotations

import math
from dataclasses import replace

from llama2q.config import ModelConfig
from llama2q.converter.gguf_values import GgufValues
from llama2q.converter.json_file import shown
from llama2q.converter.scaled_context import ScaledContext
from llama2q.errors import InvalidArgumentError, ParamsError, UnsupportedModelError
from llama2q.format.rope import attention_factor
from llama2q.rope_scaling import BETA_FAST, BETA_SLOW, MAX_FACTOR, RopeScaling

_PREFIX = "llama.rope.scaling."
_TYPE = _PREFIX + "type"
_FACTOR = _PREFIX + "factor"
_OLD_FACTOR = "llama.rope.scale_linear"
_ATTENTION = _PREFIX + "attn_factor"
_ORIGINAL = _PREFIX + "original_context_length"
_KNOWN = {_TYPE, _FACTOR, _ATTENTION, _ORIGINAL, _PREFIX + "finetuned"}
_YARN = {
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": BETA_FAST,
    "yarn_beta_slow": BETA_SLOW,
    "yarn_ext_factor": 1.0,
    "yarn_log_multiplier": 0.0,
}
"""Keys that llama.cpp reads for other architectures, each with the value that changes nothing."""


def read_rope(values: GgufValues, context_length: int) -> ScaledContext:
    """Read the type of scaling, its factor and what belongs to them.

    As in `config.json`, context_length is the context before the scaling, unless the original one
    is given beside it and another.

    Raises
    ------
    ParamsError
        Values are malformed or contradict each other.
    UnsupportedModelError
        They ask for what this engine does not compute.
    """
    return ScaledContext.of(_scaling(values, context_length), context_length)


def check_ramp(where: str, scaling: RopeScaling, model: ModelConfig) -> None:
    """Refuse scaling that is not defined for the model's heads, or that programs compute otherwise.

    Where YaRN's ramp would end before it begins, llama.cpp has a step and Hugging Face no ramp.
    """
    try:
        scaling.check(model)
    except InvalidArgumentError as error:
        raise ParamsError(f"{where}: {error}") from error
    if scaling.scaling != "yarn":
        return

    def pair(turns: float) -> float:
        ratio = math.log(scaling.original_max_seq_len / (2 * math.pi * turns))
        return model.head_dim * ratio / (2 * math.log(model.rope_theta))

    if math.ceil(pair(BETA_SLOW)) < 0 or math.floor(pair(BETA_FAST)) > model.head_dim - 1:
        raise UnsupportedModelError(
            f"{where}: YaRN of {scaling.original_max_seq_len} tokens at the base "
            f"{model.rope_theta:g} has a ramp that ends before it begins; this engine does not "
            "compute what llama.cpp makes of it"
        )


def _scaling(values: GgufValues, context_length: int) -> RopeScaling:
    where = values.where
    kind = values.text(_TYPE)
    factor = _factor(values)
    attention = values.bounded(_ATTENTION, 1.0, 1e-3, MAX_FACTOR)
    if kind not in (None, "none", "linear", "yarn"):
        raise UnsupportedModelError(
            f"{where} asks for rope scaling of type {shown(kind)} (factor {shown(factor)}); this "
            "engine computes linear and yarn of GGUF files. Take a model without it; removing the "
            "key would give wrong results"
        )
    if kind in ("linear", "yarn") and factor is None:
        raise ParamsError(f"{where} asks for rope scaling of type {kind}, but has no {_FACTOR}")
    if kind == "none" and factor not in (None, 1.0):
        raise ParamsError(f"{where}: {_TYPE} is 'none', but there is a factor of {factor:g}")
    if kind != "yarn" and attention != 1.0:
        raise UnsupportedModelError(
            f"{where}: {_ATTENTION} is {attention:g}; this engine computes it with the type yarn "
            "only"
        )
    if factor in (None, 1.0) and attention == 1.0:
        return RopeScaling()
    _refuse_unknown(values, kind)
    scaling = RopeScaling(
        scaling="yarn" if kind == "yarn" else "linear",
        factor=factor or 1.0,
        original_max_seq_len=values.size(_ORIGINAL, context_length),
    )
    if attention == 1.0:
        return scaling
    try:
        return replace(scaling, attention_factor=attention * attention_factor(scaling))
    except InvalidArgumentError as error:
        raise ParamsError(f"{where}: {error}") from error


def _factor(values: GgufValues) -> float | None:
    """Return the factor under its name, or under the older one."""
    found = [
        values.bounded(key, None, 1.0, MAX_FACTOR)
        for key in (_FACTOR, _OLD_FACTOR)
        if key in values.values
    ]
    if len(set(found)) > 1:
        raise ParamsError(f"{values.where}: {_FACTOR} and {_OLD_FACTOR} differ: {shown(found)}")
    return found[0] if found else None


def _refuse_unknown(values: GgufValues, kind: str | None) -> None:
    for key in values.values:
        name = key.removeprefix(_PREFIX)
        if name == key or key in _KNOWN:
            continue
        if name not in _YARN:
            raise UnsupportedModelError(
                f"{values.where}: {key} is not known here, and the file's positions are scaled"
            )
        if kind == "yarn" and values.number(key) != _YARN[name]:
            raise UnsupportedModelError(
                f"{values.where}: {key} is {values.number(key)}; this engine computes YaRN of GGUF "
                f"files with {_YARN[name]:g} only"
            )
