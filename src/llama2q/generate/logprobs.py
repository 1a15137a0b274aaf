"""Log-probabilities of tokens, in the shape that vLLM returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from llama2q.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token.

    Parameters
    ----------
    logprob : float
        Natural logarithm, a float32.
    rank : int
        1 for the likeliest; equal ones are ranked by id.
    decoded_token : str
        Its text inside a text, leading space included.
    """

    logprob: float
    rank: int
    decoded_token: str


TokenLogprobs: TypeAlias = dict[int, Logprob]
"""By token id: the likeliest, in order of rank, and the token of the text itself."""


def token_logprobs(
    logits: NDArray[np.float32], chosen: NDArray[np.int32], k: int, tokenizer: Tokenizer, isa: str
) -> list[TokenLogprobs]:
    """Look up the chosen token and the k likeliest of each row.

    Parameters
    ----------
    logits : float32, (n, vocab_size)
        As the model gave them.
    chosen : int32, (n,)
        The token of the text that follows each row.
    k : int
        From 0 to vocab_size.
    tokenizer : Tokenizer
    isa : str
        Instruction set; all give the same values.
    """
    ids, values, chosen_values, ranks = _core.logprobs(logits, chosen, k, isa)
    text_of = tokenizer.text_of
    found = []
    for row_ids, row_values, token, value, rank in zip(
        ids.tolist(),
        values.tolist(),
        chosen.tolist(),
        chosen_values.tolist(),
        ranks.tolist(),
        strict=True,
    ):
        row = {
            likely: Logprob(likely_value, place, text_of(likely))
            for place, (likely, likely_value) in enumerate(
                zip(row_ids, row_values, strict=True), start=1
            )
        }
        if token not in row:
            row[token] = Logprob(value, rank, text_of(token))
        found.append(row)
    return found
