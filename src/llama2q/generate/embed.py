"""Vectors that stand for texts, from the hidden states of their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.ragged import Span

Pooling = Literal["mean", "last"]

_ROWS_PER_SLICE = 256


def embed(
    engine: Engine, token_ids: Sequence[int], pooling: Pooling, *, normalize: bool
) -> NDArray[np.float32]:
    """Return the vector of one text, float32 (dim,); see `Llama.embed`.

    Sums are in float64, tokens ascending, and the norm's is exact, so that no bit depends on the
    machine.
    """
    check_pooling(pooling)
    engine.check_open()
    engine.check_ids(token_ids)
    n_tokens = len(token_ids)
    if n_tokens > engine.n_ctx:
        raise ContextLengthError(
            f"a text of {n_tokens} tokens; the context holds {engine.n_ctx}: shorten it, or embed "
            "its parts"
        )
    is_mean = pooling == "mean"
    total = np.zeros(engine.config.dim, np.float64)
    sequence = CachedSequence(engine.pool, n_tokens, wait=True, finishes=True)
    try:
        for start in range(0, n_tokens, _ROWS_PER_SLICE):
            part = [int(token) for token in token_ids[start : start + _ROWS_PER_SLICE]]
            is_last = start + len(part) == n_tokens
            n_rows = len(part) if is_mean else int(is_last)
            for row in engine.forward_hidden([Span(sequence, part, n_rows)]):
                total += row
    finally:
        sequence.release()
    if is_mean:
        total /= n_tokens
    if normalize:
        length = math.sqrt(math.fsum((total * total).tolist()))
        total /= length or 1.0
    return total.astype(np.float32)


def check_pooling(pooling: object) -> None:
    """Refuse what is no way of pooling."""
    if pooling == "cls":
        raise InvalidArgumentError(
            'pooling is "cls"; in a causal model the first token sees no other, so its vector is '
            'the same for every text: take "mean" or "last"'
        )
    if pooling not in get_args(Pooling):
        raise InvalidArgumentError(
            f"pooling is {pooling!r}; expected one of {', '.join(get_args(Pooling))}"
        )
