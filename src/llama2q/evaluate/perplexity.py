"""Perplexity of a text, by the two protocols whose figures are published."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.evaluate.divergence import log_softmax
from llama2q.evaluate.windows import Protocol, cut, scored_logits, window_of
from llama2q.generate.llama import Llama


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """Perplexity of a text.

    Parameters
    ----------
    protocol : {"llama.cpp", "gptq"}
    perplexity : float
        exp(nll).
    nll : float
        Mean negative log-likelihood of the scored tokens, in nats.
    standard_error : float
        Of `perplexity`: perplexity * sqrt(variance of the nll / (n_tokens - 1)).
    n_chunks, n_tokens : int
        Windows run and tokens scored.
    seconds : float
        Wall time.
    """

    protocol: Protocol
    perplexity: float
    nll: float
    standard_error: float
    n_chunks: int
    n_tokens: int
    seconds: float


def perplexity(
    llm: Llama,
    text: str,
    *,
    protocol: Protocol = "llama.cpp",
    n_chunks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Measure how well a model predicts a text.

    Parameters
    ----------
    llm : Llama
    text : str
        Taken as it is.
    protocol : {"llama.cpp", "gptq"}
        "llama.cpp": non-overlapping chunks of 512 tokens whose first is replaced by BOS; the
        predictions at positions 256 to 510 are scored. "gptq": one BOS before the text,
        non-overlapping windows of 2048, every prediction inside a window is scored.
        What does not fill a chunk at the end of the text is left out.
    n_chunks : int or None
        Measure only the first ones.
    progress : callable or None
        Called with the chunks done and the chunks in all.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range or the text does not fill one chunk.
    ContextLengthError
        If the model's context is shorter than a chunk.
    """
    started = time.perf_counter()
    window = window_of(protocol)
    if n_chunks is not None and n_chunks < 1:
        raise InvalidArgumentError(f"n_chunks is {n_chunks}; expected at least 1, or None for all")
    if llm.n_ctx < window.size:
        raise ContextLengthError(
            f"protocol {protocol} needs a context of {window.size} tokens; this one holds "
            f"{llm.n_ctx}"
        )
    chunks = cut(llm.tokenizer, text, protocol, window)[:n_chunks]
    nlls = []
    for i, chunk in enumerate(chunks):
        nlls += [
            negative_log_likelihood(logits, targets)
            for logits, targets in scored_logits(llm.engine, chunk, window.first_row)
        ]
        if progress is not None:
            progress(i + 1, len(chunks))
    nll = np.concatenate(nlls)
    mean = float(np.mean(nll))
    deviation = float(np.std(nll)) / math.sqrt(len(nll) - 1)
    return PerplexityResult(
        protocol=protocol,
        perplexity=math.exp(mean),
        nll=mean,
        standard_error=math.exp(mean) * deviation,
        n_chunks=len(chunks),
        n_tokens=len(nll),
        seconds=time.perf_counter() - started,
    )


def negative_log_likelihood(
    logits: NDArray[np.float32], targets: Sequence[int]
) -> NDArray[np.float64]:
    """Return -log softmax(logits)[target] of each row, in float64.

    Parameters
    ----------
    logits : float32, (n_tokens, vocab_size)
    targets : sequence of int, (n_tokens,)

    Returns
    -------
    float64, (n_tokens,)
    """
    nll: NDArray[np.float64] = -log_softmax(logits)[np.arange(len(targets)), np.asarray(targets)]
    return nll
