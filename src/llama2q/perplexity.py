"""Perplexity of a text, by the two protocols whose figures are published."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine, Span
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.generate.llama import Llama
from llama2q.kv_blocks import Sequence as CachedSequence

Protocol = Literal["llama.cpp", "gptq"]

_ROWS_PER_SLICE = 128


@dataclass(frozen=True, slots=True)
class _Window:
    """How a protocol cuts and scores: windows of `size`, rows from `first_row` on are scored."""

    size: int
    first_row: int
    bos_in_each: bool


PROTOCOLS: dict[str, _Window] = {
    "llama.cpp": _Window(512, 256, bos_in_each=True),
    "gptq": _Window(2048, 0, bos_in_each=False),
}


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
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(
            f"protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}"
        )
    if n_chunks is not None and n_chunks < 1:
        raise InvalidArgumentError(f"n_chunks is {n_chunks}; expected at least 1, or None for all")
    window = PROTOCOLS[protocol]
    if llm.n_ctx < window.size:
        raise ContextLengthError(
            f"protocol {protocol} needs a context of {window.size} tokens; this one holds "
            f"{llm.n_ctx}"
        )
    tokens = llm.tokenizer.encode(text)
    available = len(tokens) // window.size
    if available == 0:
        raise InvalidArgumentError(
            f"the text has {len(tokens)} tokens; protocol {protocol} needs {window.size} at least"
        )
    count = min(available, n_chunks or available)
    nlls = []
    for i in range(count):
        chunk = tokens[i * window.size : (i + 1) * window.size]
        if window.bos_in_each:
            chunk[0] = llm.tokenizer.bos_id
        nlls += list(_chunk_nll(llm.engine, chunk, window.first_row))
        if progress is not None:
            progress(i + 1, count)
    nll = np.concatenate(nlls)
    mean = float(np.mean(nll))
    deviation = float(np.std(nll)) / math.sqrt(len(nll) - 1)
    return PerplexityResult(
        protocol=protocol,
        perplexity=math.exp(mean),
        nll=mean,
        standard_error=math.exp(mean) * deviation,
        n_chunks=count,
        n_tokens=len(nll),
        seconds=time.perf_counter() - started,
    )


def _chunk_nll(
    engine: Engine, tokens: Sequence[int], first_row: int
) -> Iterator[NDArray[np.float64]]:
    """Score rows first_row to len(tokens) - 2 of one chunk, a slice of rows at a time."""
    # The last token is only predicted, never fed.
    n_fed = len(tokens) - 1
    sequence = CachedSequence(engine.pool, n_fed, wait=True, finishes=True)
    try:
        if first_row:
            engine.forward([Span(sequence, tokens[:first_row], 0)])
        for start in range(first_row, n_fed, _ROWS_PER_SLICE):
            end = min(start + _ROWS_PER_SLICE, n_fed)
            logits = engine.forward([Span(sequence, tokens[start:end], end - start)])
            yield negative_log_likelihood(logits, tokens[start + 1 : end + 1])
    finally:
        sequence.release()


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
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(targets)), np.asarray(targets)]
    nll: NDArray[np.float64] = np.log(np.exp(wide, out=wide).sum(axis=1)) - chosen
    return nll
