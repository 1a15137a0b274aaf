"""`adapter_config.json` of a LoRA adapter, as PEFT writes it.

Source of the keys: huggingface/peft, `LoraConfig`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2q.converter.json_file import read_json_object, shown
from llama2q.converter.lora_modules import (
    ALL_LINEAR,
    Pattern,
    Targets,
    compile_simple,
    is_saved,
)
from llama2q.errors import AdapterError, UnsupportedAdapterError

CONFIG = "adapter_config.json"
MAX_PATTERNS = 4096
MAX_NUMBER = 1 << 30

_READ = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora",
    "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "init_lora_weights", "bias",
}  # fmt: skip
_OF_TRAINING = {
    "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "revision", "megatron_core",
    "qalora_group_size", "runtime_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config",
}  # fmt: skip
"""Keys that change nothing in what is merged; the configs of initializations among them, as
init_lora_weights says which one was used."""
_KEEPS_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""Initializations after which the adapter is relative to the model as it was."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REASONS = {
    "alora_invocation_tokens": "the adapter acts from certain tokens on (aLoRA)",
    "arrow_config": "the adapter is one of several that are routed between (Arrow)",
    "ensure_weight_tying": "the output matrix's update is that of the embedding table",
    "fan_in_fan_out": "its matrices are transposed, those of a Llama model are not",
    "kasa_config": "training changed the model beneath (KaSA)",
    "layer_replication": "the adapter is for a model with repeated layers",
    "lora_bias": "the adapter has biases, this engine does not compute any",
    "megatron_config": "the adapter was trained with Megatron",
    "monteclora_config": "the adapter is a distribution (MonteCLoRA)",
    "target_parameters": "the adapter changes parameters that a Llama model does not have",
    "trainable_token_indices": "the adapter replaces rows of the embedding table",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "use_dora": "the adapter also has magnitudes of rows (DoRA)",
    "use_qalora": "its inputs are pooled (QA-LoRA)",
}
_MERGE_ELSEWHERE = (
    "merge it with PEFT (merge_and_unload, then save_pretrained) and convert the result"
)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter's config says of the weights.

    Attributes
    ----------
    rank, alpha : int, float
        Of modules that no pattern names.
    rank_stabilized : bool
        Whether updates are scaled by alpha / sqrt(rank), not alpha / rank.
    rank_pattern, alpha_pattern : tuple of Pattern
        The first that matches wins.
    targets : Targets or None
        The modules that are updated; None where the config does not tell, or only by a regular
        expression that is not evaluated.
    modules_to_save : tuple of str
        Ends of the names of modules that are replaced.
    base_model : str or None
        The model that it was trained on, as the training named it.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    rank_pattern: tuple[Pattern, ...]
    alpha_pattern: tuple[Pattern, ...]
    targets: Targets | None
    modules_to_save: tuple[str, ...]
    base_model: str | None

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's update."""
        return int(_first(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the factor of a module's update."""
        alpha, rank = _first(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank

    def replaces(self, module: str) -> bool:
        """Whether a module is replaced."""
        return is_saved(module, self.modules_to_save)


def read_lora_config(path: Path) -> LoraConfig:
    """Read `adapter_config.json`.

    Raises
    ------
    AdapterError
        It is unsound.
    UnsupportedAdapterError
        It asks for something that adding low-rank products does not give exactly; the message names
        the key.
    """
    values = read_json_object(path, AdapterError, hub=True)
    _check_kind(values)
    _check_off(values)
    return LoraConfig(
        rank=_rank(values.get("r", 8), "r"),
        alpha=_number(values.get("lora_alpha", 8), "lora_alpha"),
        rank_stabilized=_flag(values, "use_rslora"),
        rank_pattern=_patterns(values, "rank_pattern", _rank),
        alpha_pattern=_patterns(values, "alpha_pattern", _number),
        targets=_targets(values),
        modules_to_save=_names(values.get("modules_to_save"), "modules_to_save"),
        base_model=_text(values, "base_model_name_or_path"),
    )


def _check_kind(values: Mapping[str, Any]) -> None:
    """Refuse other kinds of adapters, and those that are relative to a changed model."""
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(
            f"{CONFIG}: peft_type is {shown(kind)}; only LORA can be merged here; "
            f"{_MERGE_ELSEWHERE}, if PEFT can"
        )
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UnsupportedAdapterError(
            f"{CONFIG}: task_type is {shown(task)}; expected CAUSAL_LM, a model that writes text"
        )
    bias = values.get("bias", "none")
    if bias != "none":
        raise UnsupportedAdapterError(
            f"{CONFIG}: bias is {shown(bias)}; expected 'none': this engine does not compute "
            "biases, Llama 2 has none"
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise UnsupportedAdapterError(
            f"{CONFIG}: init_lora_weights is {shown(start)}: training changed the model beneath, "
            "and the adapter fits only that one. Convert it to one for the original model (PEFT's "
            "save_pretrained with path_initial_model_for_weight_conversion), or "
            f"{_MERGE_ELSEWHERE}"
        )
    if not isinstance(start, bool | str | None) or start not in _KEEPS_THE_BASE:
        raise UnsupportedAdapterError(
            f"{CONFIG}: init_lora_weights is {shown(start)}, which is not known here; the adapter "
            f"may be relative to a changed model; {_MERGE_ELSEWHERE}"
        )


def _check_off(values: Mapping[str, Any]) -> None:
    """Refuse keys that are set and not read here."""
    for key, value in values.items():
        if key in _READ or key in _OF_TRAINING or not _is_set(value):
            continue
        reason = _REASONS.get(key, "what it means for the weights is not known here")
        raise UnsupportedAdapterError(
            f"{CONFIG} has {shown(key)} {shown(value)}: {reason}; {_MERGE_ELSEWHERE}"
        )


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value not in ([], {}, "")


def _first(patterns: tuple[Pattern, ...], module: str, default: float) -> float:
    for pattern in patterns:
        if pattern.matches(module):
            return pattern.value
    return default


def _patterns(values: Mapping[str, Any], key: str, check: Any) -> tuple[Pattern, ...]:
    entries = values.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, dict) or len(entries) > MAX_PATTERNS:
        raise AdapterError(
            f"{CONFIG}: {key} is {shown(entries)}; expected an object of at most {MAX_PATTERNS} "
            "module names and their numbers"
        )
    patterns = []
    for text, value in entries.items():
        pattern = compile_simple(text)
        if pattern is None:
            raise UnsupportedAdapterError(
                f"{CONFIG}: {key} has {shown(text)}, a regular expression of a kind that is not "
                r"evaluated here; expected names with '.*', '.+', '\d+' or '(q|v)' in them; "
                + _MERGE_ELSEWHERE
            )
        patterns.append(Pattern(pattern, check(value, f"{key} of {shown(text)}")))
    return tuple(patterns)


def _targets(values: Mapping[str, Any]) -> Targets | None:
    names = _names_or_pattern(values, "target_modules")
    excluded = _names_or_pattern(values, "exclude_modules")
    if names is None or excluded is None or names == ():
        return None
    layers = values.get("layers_to_transform")
    if layers is not None and not isinstance(layers, list):
        layers = [layers]
    if layers and not all(type(layer) is int for layer in layers):
        raise AdapterError(
            f"{CONFIG}: layers_to_transform is {shown(layers)}; expected numbers of layers"
        )
    stacks = values.get("layers_pattern") or "layers"
    if layers and "layers" not in ([stacks] if isinstance(stacks, str) else stacks):
        raise UnsupportedAdapterError(
            f"{CONFIG}: layers_pattern is {shown(stacks)}; the layers of a Llama model are "
            "'layers': the adapter is for another model"
        )
    return Targets(names, excluded, frozenset(layers) if layers else None)


def _names_or_pattern(
    values: Mapping[str, Any], key: str
) -> tuple[str, ...] | re.Pattern[str] | None:
    """Return names, or the pattern of a string; None if it is not evaluated."""
    value = values.get(key)
    if isinstance(value, str) and value.lower() != ALL_LINEAR:
        return compile_simple(value)
    return (ALL_LINEAR,) if isinstance(value, str) else _names(value, key)


def _names(value: object, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise AdapterError(f"{CONFIG}: {key} is {shown(value)}; expected a list of module names")
    return tuple(value)


def _rank(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_NUMBER:
        raise AdapterError(f"{CONFIG}: {what} is {shown(value)}; expected a rank, 1 or more")
    return value


def _number(value: object, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= MAX_NUMBER:  # type: ignore[arg-type]
        raise AdapterError(f"{CONFIG}: {what} is {shown(value)}; expected a number")
    return float(value)  # type: ignore[arg-type]


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool | None):
        raise AdapterError(f"{CONFIG}: {key} is {shown(value)}; expected true or false")
    return bool(value)


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if not isinstance(value, str | None):
        raise AdapterError(f"{CONFIG}: {key} is {shown(value)}; expected a name")
    return value or None
