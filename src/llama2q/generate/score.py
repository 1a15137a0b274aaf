"""How likely a given text is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama2q import _core
from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.ragged import Span

_ROWS_PER_SLICE = 128
_EXP_MAX = 709.0


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability of a text under the model.

    Parameters
    ----------
    token_ids : tuple of int
        The text's tokens, a BOS included. The first is given, not scored.
    logprobs : tuple of float
        Log-probability (natural, a float32) of each token after the first, given those before it;
        one fewer than `token_ids`.
    total : float
        Their sum.
    perplexity : float
        exp(-total / number of tokens scored).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: float
    perplexity: float


def score(engine: Engine, token_ids: Sequence[int]) -> Score:
    """Score the tokens of one text; see `Llama.score`."""
    engine.check_open()
    engine.check_ids(token_ids)
    n_tokens = len(token_ids)
    if n_tokens < 2:
        raise InvalidArgumentError(
            "the text has 1 token, which leaves none to score; expected 2 at least (ids are taken "
            "as they are: begin them with BOS, which is 1)"
        )
    # The last token is only predicted, never fed.
    n_fed = n_tokens - 1
    if n_fed > engine.n_ctx:
        raise ContextLengthError(
            f"{n_tokens} tokens to score; the context holds {engine.n_ctx}, of which "
            f"{engine.n_ctx + 1} can be scored; shorten the text, or measure `llama2q perplexity`, "
            "which cuts it"
        )
    ids = np.array(token_ids, np.int32)
    logprobs: list[float] = []
    sequence = CachedSequence(engine.pool, n_fed, wait=True, finishes=True)
    try:
        for start in range(0, n_fed, _ROWS_PER_SLICE):
            part = ids[start : min(start + _ROWS_PER_SLICE, n_fed)]
            logits = engine.forward([Span(sequence, part.tolist(), len(part))])
            targets = ids[start + 1 : start + 1 + len(part)]
            logprobs += _core.logprobs(logits, targets, 0, engine.isa)[2].tolist()
    finally:
        sequence.release()
    total = math.fsum(logprobs)
    return Score(
        token_ids=tuple(ids.tolist()),
        logprobs=tuple(logprobs),
        total=total,
        perplexity=math.exp(nll) if (nll := -total / n_fed) < _EXP_MAX else math.inf,
    )
