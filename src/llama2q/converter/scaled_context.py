"""The context of a checkpoint whose positions are scaled: `ScaledContext`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from llama2q.rope_scaling import RopeScaling


@dataclass(frozen=True, slots=True)
class ScaledContext:
    """How a checkpoint's positions are scaled, and how far they go.

    Attributes
    ----------
    scaling : RopeScaling
    max_seq_len : int
        Tokens of the context, scaled.
    """

    scaling: RopeScaling
    max_seq_len: int

    @classmethod
    def of(cls, scaling: RopeScaling, length: int) -> Self:
        """Return that of a checkpoint which gives its context as `length` tokens.

        That is the context before the scaling, as the documentation of transformers asks for,
        unless the original one is given beside it and another.
        """
        is_final = scaling.scaling in ("none", "dynamic") or scaling.original_max_seq_len != length
        return cls(scaling, length if is_final else scaling.max_seq_len)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        scaling = self.scaling
        original = scaling.original_max_seq_len
        if scaling.scaling == "none":
            return ()
        if scaling.scaling == "dynamic":
            return (
                f"rope scaling 'dynamic' (factor {scaling.factor:g}) acts only beyond {original} "
                f"tokens: load with a larger n_ctx, up to {scaling.max_seq_len}, to use it",
            )
        return (
            f"rope scaling {scaling.scaling!r} (factor {scaling.factor:g}): {original} tokens "
            f"become {self.max_seq_len}",
        )
