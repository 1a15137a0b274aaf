"""What Hugging Face's `config.json` says of rotary positions: the base, and how it is scaled.

Source of keys, defaults and formulas: huggingface/transformers, `modeling_rope_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llama2q.converter.json_file import shown
from llama2q.converter.scaled_context import ScaledContext
from llama2q.errors import InvalidArgumentError, ParamsError, UnsupportedModelError
from llama2q.rope_scaling import BETA_FAST, BETA_SLOW, MAX_FACTOR, RopeScaling

DEFAULT_CONTEXT = 2048

_NONE = RopeScaling()
_NAMES = ("rope_type", "type")
_ANY = (*_NAMES, "factor", "rope_theta", "partial_rotary_factor", "finetuned",
        "original_max_position_embeddings")  # fmt: skip
_KEYS = {
    "linear": _ANY,
    "dynamic": _ANY,
    "yarn": (*_ANY, "attention_factor", "beta_fast", "beta_slow", "truncate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HfRope:
    """Rotary positions of a checkpoint.

    Attributes
    ----------
    theta : float
    context : ScaledContext
    """

    theta: float
    context: ScaledContext


def read_rope(values: Mapping[str, Any], max_position_embeddings: int | None) -> HfRope:
    """Read `rope_theta` and `rope_scaling`, or both from `rope_parameters`.

    Raises
    ------
    ParamsError
        Values are malformed or contradict each other.
    UnsupportedModelError
        They ask for what this engine does not compute.
    """
    length = max_position_embeddings or DEFAULT_CONTEXT
    thetas, found = [], []
    if values.get("rope_theta") is not None:
        thetas.append(number(values, "rope_theta", 1.0, 1e12))
    for key in ("rope_scaling", "rope_parameters"):
        settings = values.get(key)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise ParamsError(f"config.json: {key} is {shown(settings)}; expected an object")
        if any(isinstance(value, dict) for value in settings.values()):
            raise UnsupportedModelError(
                f"config.json: {key} differs by layer ({shown(sorted(settings))}); this engine "
                "rotates all layers alike"
            )
        if settings.get("rope_theta") is not None:
            thetas.append(number(settings, "rope_theta", 1.0, 1e12))
        found.append(_scaling(settings, key, length))
    if len(set(thetas)) > 1:
        raise ParamsError(
            f"config.json gives rope_theta twice: {thetas[0]:g} and {thetas[1]:g}; keep one"
        )
    if len(set(found)) > 1:
        raise ParamsError("config.json: rope_scaling and rope_parameters differ; keep one")
    return HfRope(
        theta=thetas[0] if thetas else 10000.0,
        context=_context(values, found[0] if found else _NONE, length),
    )


def is_same(value: object, neutral: object) -> bool:
    """Whether a value from JSON is the neutral one; a bool equals bools only."""
    if isinstance(neutral, bool) or isinstance(value, bool):
        return value is neutral
    return isinstance(value, int | float) and value == neutral


def number(values: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """Return a number in [low, high]."""
    value = values[name]
    if type(value) not in (int, float) or not low <= value <= high:
        raise ParamsError(
            f"config.json: {name} is {shown(value)}; expected a number in [{low:g}, {high:g}]"
        )
    return float(value)


def _scaling(settings: Mapping[str, Any], key: str, length: int) -> RopeScaling:
    named = [settings[name] for name in _NAMES if settings.get(name) is not None]
    if any(not isinstance(name, str) for name in named):
        raise ParamsError(f"config.json: {key} is {shown(settings)}; expected its type as a text")
    kind = named[0] if named else "default"
    if any(name != kind for name in named):
        raise ParamsError(f"config.json: {key} names two types, {shown(named)}; keep one")
    if not is_same(settings.get("partial_rotary_factor", 1.0), 1.0):
        raise UnsupportedModelError(
            f"config.json: {key} rotates a part of each head; this engine does not"
        )
    if kind == "default":
        return _NONE
    if kind not in _KEYS:
        raise UnsupportedModelError(
            f"config.json: {key} asks for rope scaling of type {shown(kind)} (factor "
            f"{shown(settings.get('factor'))}); this engine computes {', '.join(_KEYS)}. Take a "
            "model without it; removing the key would give wrong results"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    if unknown := sorted(set(given) - set(_KEYS[kind])):
        raise UnsupportedModelError(
            f"config.json: {key} of type {kind} has {shown(unknown)}; this engine does not compute "
            "what that asks for"
        )
    if "factor" not in given:
        raise ParamsError(f"config.json: {key} of type {kind} has no factor")
    factor = number(given, "factor", 1.0, MAX_FACTOR)
    original = given.get("original_max_position_embeddings", length)
    if kind == "dynamic":
        original = length
    elif factor == 1.0:
        return _NONE
    more: dict[str, Any] = {"scaling": kind}
    if kind == "yarn":
        if "attention_factor" in given:
            more["attention_factor"] = number(given, "attention_factor", 1e-3, MAX_FACTOR)
        more["truncate"] = given.get("truncate", True)
        for name, default in (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW)):
            more[name] = number({name: default, **given}, name, 1e-3, 1e6)
    try:
        return RopeScaling(factor=factor, original_max_seq_len=original, **more)
    except InvalidArgumentError as error:
        raise ParamsError(f"config.json: {key}: {error}") from error


def _context(values: Mapping[str, Any], scaling: RopeScaling, length: int) -> ScaledContext:
    """Return the scaled context; Vicuna gives its length as max_sequence_length."""
    context = ScaledContext.of(scaling, length)
    named = values.get("max_sequence_length")
    if named is None or scaling.scaling in ("none", "dynamic"):
        return context
    if scaling.original_max_seq_len != length:
        return context
    if type(named) is not int or not length <= named < 2**31:
        raise ParamsError(
            f"config.json: max_sequence_length is {shown(named)}; expected an integer of at least "
            f"max_position_embeddings, which is {length}"
        )
    return replace(context, max_seq_len=named)
