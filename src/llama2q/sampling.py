"""How a token is chosen: `SamplingParams`, under vLLM's names and Meta's defaults."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from llama2q.errors import InvalidArgumentError

# The sampler computes in float32.
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.1754943508222875e-38


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one generation. A value outside its range is an `InvalidArgumentError`.

    Parameters
    ----------
    temperature : float
        Divides the logits; 0 takes the likeliest token always. At least 0.
    top_p : float
        Keep the likeliest tokens while the probabilities before them sum to at most this.
        Above 0, at most 1 (off).
    top_k : int
        Keep this many of the likeliest tokens; 0 is off.
    min_p : float
        Keep tokens at least this fraction as likely as the likeliest. In [0, 1]; 0 is off.
    seed : int or None
        Same seed, same text: in [0, 2**64). None draws one, which the result reports.
    max_tokens : int or None
        Generate at most this many, at least 1. None: until the end of the text or of the context.
    stop : str or sequence of str
        Strings that end the text; they are no part of it.
    stop_token_ids : sequence of int
        Token ids that end the text, beside the model's own end-of-text id.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Check every field, and bring numbers and sequences to one type."""
        self._set("temperature", _real("temperature", self.temperature, 0.0, _FLOAT32_MAX))
        self._set("top_p", _real("top_p", self.top_p, 0.0, 1.0))
        if self.top_p < _FLOAT32_TINY:
            raise InvalidArgumentError(
                f"top_p is {self.top_p}; expected a number above 0, at most 1 "
                "(temperature=0 is greedy)"
            )
        self._set("min_p", _real("min_p", self.min_p, 0.0, 1.0))
        self._set("top_k", _integer("top_k", self.top_k, 0, 2**31, hint="0 is off"))
        if self.seed is not None:
            self._set("seed", _integer("seed", self.seed, 0, 2**64))
        if self.max_tokens is not None:
            hint = "None is no limit"
            self._set("max_tokens", _integer("max_tokens", self.max_tokens, 1, 2**31, hint=hint))
        self._set("stop", _stop_strings(self.stop))
        ids = self.stop_token_ids
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidArgumentError(f"stop_token_ids is {ids!r}; expected a sequence of ids")
        ids = tuple(_integer(f"stop_token_ids[{i}]", x, 0, 2**31) for i, x in enumerate(ids))
        self._set("stop_token_ids", ids)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, params: SamplingParams | None, changes: Mapping[str, Any]) -> SamplingParams:
        """Return `params`, or the defaults, with some fields replaced.

        Raises
        ------
        InvalidArgumentError
            If a name is no field or a value is outside its range.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidArgumentError(
                f"params is a {type(params).__name__}; expected SamplingParams or None"
            )
        names = [field.name for field in fields(cls)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
                raise InvalidArgumentError(f"unknown sampling parameter {name!r}; {hint}")
        return replace(params or cls(), **changes)


def _real(name: str, value: Any, low: float, high: float) -> float:
    """Check a real number in [low, high], infinity excluded."""
    expected = f"at least {low:g}" if high == _FLOAT32_MAX else f"from {low:g} to {high:g}"
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name} is {value!r}; expected a number {expected}") from None
    if not low <= number <= high:
        raise InvalidArgumentError(f"{name} is {number!r}; expected a finite number {expected}")
    return number


def _integer(name: str, value: Any, low: int, end: int, *, hint: str = "") -> int:
    """Check an integer in [low, end)."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number < end:
        power = f"2**{end.bit_length() - 1}"
        raise InvalidArgumentError(
            f"{name} is {value!r}; expected an integer from {low} to {power} - 1"
            + (f" ({hint})" if hint else "")
        )
    return number


def _stop_strings(stop: Any) -> tuple[str, ...]:
    """Check the stop strings; one string alone is a sequence of one."""
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence):
        raise InvalidArgumentError(f"stop is {stop!r}; expected a string or a sequence of strings")
    for string in strings:
        if not isinstance(string, str) or not string:
            raise InvalidArgumentError(
                f"stop holds {string!r}; expected strings of at least one character"
            )
    return tuple(strings)
