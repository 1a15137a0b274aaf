"""What a generation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from llama2q.generate.logprobs import TokenLogprobs
from llama2q.generate.receipt import Receipt

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written.

    Parameters
    ----------
    prompt_tokens : int
        Tokens of the prompt, BOS included.
    completion_tokens : int
        Tokens in `Completion.token_ids`.
    cached_tokens : int
        Tokens of the prompt that were not computed: the KV cache held them, or another sample of
        the prompt read them. Not compared: it says how the result came about, not what it is.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)

    @property
    def total_tokens(self) -> int:
        """Sum of both."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time; in a batch, the time of the neighbours is in it.

    Parameters
    ----------
    prompt_seconds : float
        From the start of the first step to the first new token.
    decode_seconds : float
        From the first new token to the last.
    prompt_tokens_per_second, tokens_per_second : float
        Speed of reading the prompt and of writing; 0 where nothing was measured, as the prompt's
        in samples that share what another has read.
    """

    prompt_seconds: float
    decode_seconds: float
    prompt_tokens_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation.

    Parameters
    ----------
    text : str
        The text that follows the prompt's: `decode(prompt_ids + token_ids)` less the text that was
        complete with the prompt, up to the stop string, which is left out. A leading space is
        there unless the prompt has no text.
    token_ids : tuple of int
        All ids generated, those of the stop string too; without the end-of-text id and without an
        id of `stop_token_ids`.
    finish_reason : {"stop", "length", "abort"}
        "stop": end of text, stop string or stop id. "length": max_tokens or the context reached.
        "abort": the stream was closed, or failed, before its end; `text` is what was streamed.
    stop_reason : str, int or None
        The stop string or the id of `stop_token_ids` that ended it; None for the model's own end.
    usage : Usage
    timings : Timings
    seed : int
        Seed given or drawn; the same seed gives the same text.
    index : int
        Which of the prompt's `n` samples this is; also its sequence index in the draws.
    prompt : str or None
        With `echo`: the prompt's text, which `text` continues.
    prompt_token_ids : tuple of int or None
        With `echo`: the prompt's ids.
    logprobs : tuple of dict or None
        With `logprobs`: of each of `token_ids`, a dict from token id to `Logprob`; it holds the
        k likeliest, in order of rank, and the token itself.
    prompt_logprobs : tuple of dict or None
        With `prompt_logprobs`: the same of each token of the prompt; None for the first, which
        nothing predicts.
    others : tuple of Completion
        With `n` above 1: the samples 1 to n - 1 of the prompt; this one is sample 0.
    receipt : Receipt or None
        What `llama2q.replay` computes these tokens from again; it holds the prompt's ids. None with
        logits processors, and where a session's context has slid.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings
    seed: int
    index: int = 0
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    others: tuple[Completion, ...] = ()
    receipt: Receipt | None = field(default=None, repr=False)

    @property
    def samples(self) -> tuple[Completion, ...]:
        """All samples of the prompt in the order of their index, this one first."""
        return (self, *self.others)

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the log-probabilities of `token_ids`; None without `logprobs`."""
        if self.logprobs is None:
            return None
        pairs = zip(self.token_ids, self.logprobs, strict=True)
        return math.fsum(row[token].logprob for token, row in pairs)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream: new text, and all ids generated since the last chunk.

    With `echo` the first chunk begins with the prompt's text and ids.

    Parameters
    ----------
    text : str
        Whole characters; empty at most in the last chunk.
    token_ids : tuple of int
        Ids since the last chunk.
    finish_reason : {"stop", "length"} or None
        Set in the last chunk.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
