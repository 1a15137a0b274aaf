"""Which part of a text the context holds, where it has no room for all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.request import n_after_slide

WhenFull: TypeAlias = Literal["stop", "slide"]


@dataclass(frozen=True, slots=True)
class Window:
    """What a session does with a full context; see `Llama.session`.

    Parameters
    ----------
    n_ctx : int
        Most tokens that the context holds.
    when_full : {"stop", "slide"}
    keep : int
        Tokens of the beginning that a slide keeps, 0 to n_ctx - 1.
    """

    n_ctx: int
    when_full: WhenFull
    keep: int

    def __post_init__(self) -> None:
        """Check what users give."""
        if self.when_full not in get_args(WhenFull):
            raise InvalidArgumentError(
                f"when_full is {self.when_full!r}; expected one of {', '.join(get_args(WhenFull))}"
            )
        if type(self.keep) is not int or not 0 <= self.keep < self.n_ctx:
            raise InvalidArgumentError(
                f"keep is {self.keep!r}; expected an integer, 0 to {self.n_ctx - 1}, as the "
                f"context holds {self.n_ctx} tokens"
            )

    @property
    def slide_keep(self) -> int | None:
        """How many tokens an output's slide keeps; None where it stops."""
        return self.keep if self.when_full == "slide" else None

    def hold(self, ids: list[int], n_new: int, *, room: int) -> list[int]:
        """Return what remains of a text whose last tokens are new: these all do.

        Parameters
        ----------
        ids : list of int
        n_new : int
            How many of the last ones are new.
        room : int
            Tokens more that the context must have room for.

        Raises
        ------
        ContextLengthError
            If the context has no room for the text, or, where it slides, for the new tokens.
        """
        most = self.n_ctx - room
        if len(ids) <= most:
            return ids
        if self.when_full == "stop":
            raise ContextLengthError(
                f"the session has {len(ids) - n_new} tokens and {n_new} new ones; the context "
                f"holds {self.n_ctx}"
                + (", one of them of the output" if room else "")
                + ": rewind() it, or make it with when_full='slide'"
            )
        n_last = max(n_after_slide(self.keep, self.n_ctx) - self.keep, n_new)
        if self.keep + n_last > most:
            raise ContextLengthError(
                f"{n_new} new tokens and the {self.keep} that are kept; the context holds "
                f"{self.n_ctx}"
            )
        return ids[: self.keep] + ids[len(ids) - n_last :]
