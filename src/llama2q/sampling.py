"""How a token is chosen: `SamplingParams`, under vLLM's names and Meta's defaults."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import InvalidArgumentError

LogitsProcessor: TypeAlias = Callable[[list[int], NDArray[np.float32]], NDArray[np.float32]]
"""Called as `processor(token_ids, logits)` before each token; returns the logits to go on with.

token_ids are those of prompt and output, logits float32 (vocab_size,), which may be changed in
place. What it returns has the same type and shape; -inf bans a token, NaN and +inf are errors.
"""

# The sampler computes in float32.
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.1754943508222875e-38


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one generation. A value outside its range is an `InvalidArgumentError`.

    The steps from the model's logits to a token are taken in this order: logits_processors,
    logit_bias, repetition_penalty, frequency_penalty, presence_penalty, the ban of min_tokens,
    temperature, min_p, top_k, top_p, the draw.

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
    repetition_penalty : float
        Tokens of the prompt and the output: a positive logit is divided by it, another multiplied.
        Above 0; 1 is off, more discourages repetition.
    presence_penalty : float
        Subtracted from the logits of the tokens of the output. From -2 to 2; 0 is off.
    frequency_penalty : float
        Subtracted as often as the token is in the output. From -2 to 2; 0 is off.
    logit_bias : mapping of int to float
        Added to the logits of these token ids: from -100 to 100, or -inf, which bans. A copy is
        kept.
    min_tokens : int
        Until so many tokens are generated, neither the end of the text nor an id of
        stop_token_ids can be, and stop strings are not looked for. 0 is off.
    ignore_eos : bool
        Go on after the model's end-of-text id, which then is a token like any other.
    n : int
        Samples per prompt: sample i is drawn with sequence index i and the same seed. The prompt
        is computed once. More than 1 needs a temperature above 0.
    echo : bool
        Return the prompt's text and ids too.
    logprobs : int or None
        Return the log-probability of each generated token and of this many likeliest ones in its
        place, of the model's own logits, before any of the settings above. None returns none.
    prompt_logprobs : int or None
        The same of the tokens of the prompt.
    logits_processors : sequence of callable
        Applied in this order, see `LogitsProcessor`.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logits_processors: Sequence[LogitsProcessor] = ()

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
        self._check_penalties()
        self._check_lengths()
        for name in ("ignore_eos", "echo"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidArgumentError(f"{name} is {getattr(self, name)!r}; expected a bool")
            self._set(name, bool(getattr(self, name)))
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                hint = "None is off; 0 returns the chosen token's alone"
                self._set(name, _integer(name, value, 0, 2**31, hint=hint))
        self._set("logits_processors", _processors(self.logits_processors))

    def _check_penalties(self) -> None:
        penalty = _real("repetition_penalty", self.repetition_penalty, 0.0, _FLOAT32_MAX)
        if penalty < _FLOAT32_TINY:
            raise InvalidArgumentError(
                f"repetition_penalty is {penalty}; expected a number above 0 (1 is off)"
            )
        self._set("repetition_penalty", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            self._set(name, _real(name, getattr(self, name), -2.0, 2.0))
        self._set("logit_bias", _biases(self.logit_bias))

    def _check_lengths(self) -> None:
        self._set("min_tokens", _integer("min_tokens", self.min_tokens, 0, 2**31, hint="0 is off"))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgumentError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}"
            )
        self._set("n", _integer("n", self.n, 1, 2**31))
        if self.n > 1 and self.temperature == 0:
            raise InvalidArgumentError(
                f"n is {self.n} and temperature 0, which makes all samples equal; set a "
                "temperature above 0, or n=1"
            )

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


def _biases(biases: Any) -> dict[int, float]:
    """Check logit_bias, and copy it."""
    if not isinstance(biases, Mapping):
        raise InvalidArgumentError(
            f"logit_bias is {biases!r}; expected a mapping of token ids to numbers"
        )
    checked = {}
    for token, bias in biases.items():
        token = _integer("a token id of logit_bias", token, 0, 2**31)
        name = f"logit_bias[{token}]"
        is_ban = isinstance(bias, float) and bias == -math.inf
        checked[token] = bias if is_ban else _real(name, bias, -100.0, 100.0)
    return checked


def _processors(processors: Any) -> tuple[LogitsProcessor, ...]:
    """Check that the processors are a sequence of callables."""
    if not isinstance(processors, Sequence) or isinstance(processors, str):
        raise InvalidArgumentError(
            f"logits_processors is {processors!r}; expected a sequence of callables"
        )
    for i, processor in enumerate(processors):
        if not callable(processor):
            raise InvalidArgumentError(
                f"logits_processors[{i}] is {processor!r}; expected a callable "
                "(token_ids, logits) -> logits"
            )
    return tuple(processors)
