"""Which modules of a model the names and patterns of an adapter's config mean.

Modules have the names of Hugging Face's model: `model.layers.0.self_attn.q_proj`. Source of the
rules: huggingface/peft, `check_target_module_exists`, `get_pattern_key` and `_set_trainable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

OUTPUT_MODULE = "lm_head"
ALL_LINEAR = "all-linear"
MAX_PATTERN_LENGTH = 300
MAX_REPEATS = 4

_SIMPLE = re.compile(
    r"\^?(?:[A-Za-z0-9_-]|\\?\.(?:[*+]\??)?|(?:\\d|\[0-9\])[*+]?|\((?:\?:)?[A-Za-z0-9_|]+\))*\$?"
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def compile_simple(text: str) -> re.Pattern[str] | None:
    r"""Compile a pattern of names, `.`, `.*`, `.+`, `\d+` and groups like `(q|v)`.

    Returns
    -------
    re.Pattern or None
        None for any other regular expression: one from a file could take for ever.
    """
    if len(text) > MAX_PATTERN_LENGTH or not _SIMPLE.fullmatch(text):
        return None
    if text.count("*") + text.count("+") > MAX_REPEATS or text.count("(") > MAX_REPEATS:
        return None
    return re.compile(text)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A key of rank_pattern or alpha_pattern, and its value."""

    pattern: re.Pattern[str]
    value: float

    def matches(self, module: str) -> bool:
        """Whether the pattern is the module's name, or its end behind a dot."""
        starts = (0, *(match.end() for match in re.finditer(r"\.", module)))
        return any(self.pattern.fullmatch(module, start) is not None for start in starts)


@dataclass(frozen=True, slots=True)
class Targets:
    """The modules that get a low-rank update.

    Attributes
    ----------
    names : tuple of str, or re.Pattern
        Ends of module names, or a pattern of whole names.
    excluded : tuple of str, or re.Pattern
        Modules that do not, though `names` means them.
    layers : frozenset of int, or None
        The layers that do; None for all of them.
    """

    names: tuple[str, ...] | re.Pattern[str]
    excluded: tuple[str, ...] | re.Pattern[str] = ()
    layers: frozenset[int] | None = None

    def include(self, module: str) -> bool:
        """Whether a module gets an update."""
        if _means(self.excluded, module):
            return False
        if self.names == (ALL_LINEAR,):
            return _LAYER.match(module) is not None
        if not _means(self.names, module):
            return False
        layer = _LAYER.match(module)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)


def is_saved(module: str, modules_to_save: Iterable[str]) -> bool:
    """Whether modules_to_save means a module or one that holds it."""
    parts = module.split(".")
    holders = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(holder.endswith(name) for holder in holders for name in modules_to_save)


def _means(names: tuple[str, ...] | re.Pattern[str], module: str) -> bool:
    if isinstance(names, re.Pattern):
        return names.fullmatch(module) is not None
    return any(module == name or module.endswith("." + name) for name in names)
