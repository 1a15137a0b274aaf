"""A prompt, whose samples share what was computed for it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.logprobs import TokenLogprobs, token_logprobs
from llama2q.sampling import SamplingParams

if TYPE_CHECKING:
    from llama2q.generate.request import Request


class Prompt:
    """Tokens of a prompt, and for its samples: seed, last logits, log-probabilities.

    One sample reads the prompt. The others, the waiting ones, begin with a fork of the sequence of
    one that runs, or take over the sequence of one that ends; so as long as any waits, the prompt
    stays in the KV cache.
    """

    def __init__(
        self,
        engine: Engine,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        is_chat: bool = False,
        slide_keep: int | None = None,
    ) -> None:
        """Check the prompt against the model; nothing is computed.

        Parameters
        ----------
        engine : Engine
        ids : sequence of int
        params : SamplingParams
        is_chat : bool
            What follows is an answer, whose text begins behind any white space.
        slide_keep : int or None
            Where the context is full, go on with so many tokens of the beginning and the last ones,
            half a context in all; without `max_tokens`, for one context of new tokens. None ends
            the output there.

        Raises
        ------
        InvalidArgumentError
            If the prompt is empty, or an id of it or of the settings outside the vocabulary.
        ContextLengthError
            If the prompt leaves no room for a token.
        """
        engine.check_open()
        engine.check_ids(ids)
        self.ids = [int(token) for token in ids]
        self.slide_keep = slide_keep
        self.n_ctx = engine.n_ctx
        room = engine.n_ctx - len(self.ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(self.ids)} tokens and the context holds {engine.n_ctx}, one "
                "of them new at least; shorten the prompt"
                + (
                    f" or load the model with a larger n_ctx (up to {engine.config.max_seq_len})"
                    if engine.n_ctx < engine.config.max_seq_len
                    else ""
                )
            )
        _check_vocabulary(params, engine.config.vocab_size)
        self.params = params
        self.is_chat = is_chat
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        room = room if slide_keep is None else max(params.max_tokens or 0, engine.n_ctx)
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        """Most tokens of the output."""
        self.reader: Request | None = None
        """A running sample that has read the prompt, or is about to."""
        self.row: NDArray[np.float32] | None = None
        """Logits after the prompt, float32 (vocab_size,), once it has been read."""
        self.logprobs: list[TokenLogprobs | None] = [None]

    @property
    def capacity(self) -> int:
        """Most tokens in the KV cache: the last one is returned, never fed."""
        return min(len(self.ids) + self.limit - 1, self.n_ctx)

    @property
    def reusable_ids(self) -> Sequence[int]:
        """Tokens that need not be computed where the cache holds them: those without logits."""
        return self.ids[:-1] if self.params.prompt_logprobs is None else ()

    def add_logprobs(self, engine: Engine, rows: NDArray[np.float32]) -> None:
        """Take the logits of the next tokens of the prompt, float32 (n, vocab_size)."""
        k = self.params.prompt_logprobs
        first = len(self.logprobs)
        targets = np.array(self.ids[first : first + len(rows)], np.int32)
        if k is not None and len(targets):
            rows = rows[: len(targets)]
            self.logprobs += token_logprobs(rows, targets, k, engine.tokenizer, engine.isa)


def _check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
    ):
        for token in ids:
            if token >= vocab_size:
                raise InvalidArgumentError(
                    f"{name} holds {token}; the vocabulary ends at {vocab_size - 1}"
                )
    for name, k in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if k is not None and k > vocab_size:
            raise InvalidArgumentError(f"{name} is {k}; the vocabulary has {vocab_size} tokens")
