"""What a call asks of a session."""

from __future__ import annotations

from dataclasses import dataclass

from llama2q.errors import InvalidArgumentError
from llama2q.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Asked:
    """A text to continue.

    Parameters
    ----------
    ids : list of int
        The whole text.
    n_new : int
        How many of its last tokens the session did not have.
    params : SamplingParams
    is_chat : bool
        What follows is an answer.
    """

    ids: list[int]
    n_new: int
    params: SamplingParams
    is_chat: bool = False


def checked(params: SamplingParams) -> SamplingParams:
    """Refuse settings that a session has no use for."""
    if params.n > 1:
        raise InvalidArgumentError(
            f"n is {params.n}; a session is one text: fork() it, and generate in each"
        )
    if params.prompt_logprobs is not None:
        raise InvalidArgumentError(
            "prompt_logprobs is set; a session computes no token again: use generate() or score() "
            "of the model"
        )
    return params
