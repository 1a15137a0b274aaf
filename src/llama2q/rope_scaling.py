"""How positions beyond a model's training are rotated: `RopeScaling`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, get_args

from llama2q.config import ModelConfig
from llama2q.errors import InvalidArgumentError

ScalingKind = Literal["none", "linear", "ntk", "dynamic", "yarn"]
KINDS: tuple[ScalingKind, ...] = get_args(ScalingKind)
MAX_FACTOR = 1000.0
BETA_FAST, BETA_SLOW = 32.0, 1.0
"""YaRN's defaults for Llama."""

_YARN = ("attention_factor", "beta_fast", "beta_slow", "truncate")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary frequencies; `format.rope` computes what follows from it.

    Attributes
    ----------
    scaling : {"none", "linear", "ntk", "dynamic", "yarn"}
        "linear": all frequencies / factor (kaiokendev; Chen et al., 2023). "ntk": the base times
        factor^(d / (d - 2)) (bloc97). "dynamic": nothing up to original_max_seq_len tokens, beyond
        them "ntk" with the factor that `fixed` gives. "yarn": Peng et al., 2023.
    factor : float
        How many times longer the context becomes; 1 to 1000.
    original_max_seq_len : int
        Tokens of the context without scaling; 0 with "none".
    attention_factor : float or None
        Factor on cos and sin, with "yarn"; None: 0.1 ln(factor) + 1.
    beta_fast, beta_slow : float
        With "yarn": dimensions that turn more often than beta_fast times within the original
        context keep their frequency, those below beta_slow get it / factor, between is a ramp.
    truncate : bool
        With "yarn": the ramp begins and ends at whole dimensions.
    """

    scaling: ScalingKind = "none"
    factor: float = 1.0
    original_max_seq_len: int = 0
    attention_factor: float | None = None
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    truncate: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        if self.scaling not in KINDS:
            raise InvalidArgumentError(
                f"the type of rope scaling is {self.scaling!r}; expected one of {', '.join(KINDS)}"
            )
        _check_number("factor", self.factor, 1.0, MAX_FACTOR)
        length = self.original_max_seq_len
        lowest = 0 if self.scaling == "none" else 1
        if type(length) is not int or not lowest <= length < 2**31:
            raise InvalidArgumentError(
                f"original_max_seq_len is {length!r}; expected an integer in [{lowest}, 2**31)"
            )
        if self.attention_factor is not None:
            _check_number("attention_factor", self.attention_factor, 1e-3, MAX_FACTOR)
        for name in ("beta_fast", "beta_slow"):
            _check_number(name, getattr(self, name), 1e-3, 1e6)
        if self.beta_slow > self.beta_fast:
            raise InvalidArgumentError(
                f"beta_slow is {self.beta_slow}, more than beta_fast, which is {self.beta_fast}"
            )
        if type(self.truncate) is not bool:
            raise InvalidArgumentError(f"truncate is {self.truncate!r}; expected a bool")
        if self.scaling == "none" and (self.factor != 1.0 or length or self._yarn_is_set):
            raise InvalidArgumentError('rope scaling "none" has no parameters')
        if self.scaling != "yarn" and self._yarn_is_set:
            raise InvalidArgumentError(
                f'rope scaling "{self.scaling}" has none of {", ".join(_YARN)}; these are YaRN\'s'
            )

    @property
    def _yarn_is_set(self) -> bool:
        values = (self.attention_factor, self.beta_fast, self.beta_slow, self.truncate)
        return values != (None, BETA_FAST, BETA_SLOW, True)

    @property
    def max_seq_len(self) -> int:
        """Tokens of the scaled context."""
        return min(int(self.original_max_seq_len * self.factor), 2**31 - 1)

    def check(self, config: ModelConfig) -> None:
        """Refuse scaling that is not defined for a model's heads."""
        if self.scaling in ("ntk", "dynamic") and config.head_dim < 4:
            raise InvalidArgumentError(
                f"rope scaling {self.scaling} is not defined for heads of {config.head_dim} element"
            )
        if self.scaling == "yarn" and config.rope_theta <= 1.0:
            raise InvalidArgumentError("rope scaling yarn is not defined for rope_theta 1")

    def fixed(self, n_ctx: int) -> RopeScaling:
        """Return what acts in a context of so many tokens, for the whole of it.

        Hugging Face's "dynamic" changes its base with the length of the text, also for keys that
        are in the cache already; here the base is that of the context, from the first token on.
        """
        if self.scaling != "dynamic":
            return self
        original = self.original_max_seq_len
        if n_ctx <= original:
            return RopeScaling()
        factor = self.factor * n_ctx / original - (self.factor - 1.0)
        return RopeScaling(scaling="ntk", factor=factor, original_max_seq_len=original)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that act, for JSON: the form of a file's metadata."""
        if self.scaling == "none":
            return {"scaling": "none"}
        names: tuple[str, ...] = ("scaling", "factor", "original_max_seq_len")
        if self.scaling == "yarn":
            names += _YARN
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_dict`'s form; the key set must be exact."""
        scaling: Any = values.get("scaling")
        expected = {"scaling"}
        if scaling != "none":
            expected |= {"factor", "original_max_seq_len"}
        if scaling == "yarn":
            expected |= {*_YARN}
        if set(values) != expected:
            missing, extra = sorted(expected - set(values)), sorted(set(values) - expected)
            raise InvalidArgumentError(f"rope: missing keys {missing}, unknown {extra}")
        return cls(**values)


RopeChoice: TypeAlias = str | Mapping[str, Any] | RopeScaling | None
"""`rope_scaling` of `llama2q.load`."""


def choose_rope(
    asked: RopeChoice,
    own: RopeScaling,
    config: ModelConfig,
    n_ctx: int | None,
) -> tuple[RopeScaling, int]:
    """Return the scaling that acts, and the context, of a model that is loaded.

    Parameters
    ----------
    asked : str, mapping, RopeScaling or None
        `rope_scaling` of `llama2q.load`; None: the file's own.
    own : RopeScaling
        The file's.
    config : ModelConfig
    n_ctx : int or None
        Tokens asked for.

    Raises
    ------
    InvalidArgumentError
        If they contradict each other, or n_ctx is more than the scaled context.
    """
    if asked is None:
        longest = max(config.max_seq_len, own.max_seq_len)
        chosen, default = own, config.max_seq_len
    else:
        original = own.original_max_seq_len or config.max_seq_len
        chosen = _asked(asked, original, n_ctx)
        default = longest = chosen.max_seq_len or original
        if isinstance(asked, RopeScaling):  # that of a model loaded before, whose context it was
            longest = max(longest, config.max_seq_len)
    if n_ctx is not None and n_ctx > longest:
        hint = "" if asked is not None else '; a longer one needs rope_scaling="yarn" or another'
        raise InvalidArgumentError(
            f"n_ctx is {n_ctx}; the model's context is {longest} tokens at most{hint}"
        )
    n_ctx = n_ctx or default
    chosen.check(config)
    return chosen.fixed(n_ctx), n_ctx


def _asked(
    asked: str | Mapping[str, Any] | RopeScaling, original: int, n_ctx: int | None
) -> RopeScaling:
    """Read `rope_scaling`; a factor that is not given follows from n_ctx."""
    if isinstance(asked, RopeScaling):
        return asked
    if isinstance(asked, str):
        asked = {"type": asked}
    if not isinstance(asked, Mapping):
        raise InvalidArgumentError(
            f"rope_scaling is {asked!r}; expected None, a type ({', '.join(KINDS)}) or a mapping "
            'such as {"type": "yarn", "factor": 4}'
        )
    values: dict[str, Any] = dict(asked)
    kind = values.pop("type", None)
    known = {"factor", "original_max_seq_len", *_YARN}
    if unknown := sorted(map(str, values.keys() - known)):
        raise InvalidArgumentError(
            f"rope_scaling has {unknown[0]!r}; expected type and {', '.join(sorted(known))}"
        )
    if kind == "none":
        return RopeScaling(scaling="none", **values)
    values.setdefault("original_max_seq_len", original)
    for name in ("factor", "attention_factor", "beta_fast", "beta_slow"):
        if type(values.get(name)) is int:
            values[name] = float(values[name])
    if "factor" not in values:
        if n_ctx is None:
            raise InvalidArgumentError(
                f"rope_scaling is of type {kind!r} without a factor; give it, or n_ctx, from which "
                "it follows"
            )
        length = values["original_max_seq_len"]
        values["factor"] = max(1.0, n_ctx / length) if type(length) is int and length > 0 else 1.0
    return RopeScaling(scaling=kind, **values)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if type(value) is not float or not low <= value <= high:
        raise InvalidArgumentError(
            f"{name} of rope scaling is {value!r}; expected a number from {low:g} to {high:g}"
        )
