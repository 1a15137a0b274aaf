"""A text cut into windows, and the logits of the tokens that a protocol scores in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine
from llama2q.errors import InvalidArgumentError
from llama2q.kv_sequence import Sequence as CachedSequence
from llama2q.ragged import Span
from llama2q.tokenizer import Tokenizer

Protocol: TypeAlias = Literal["llama.cpp", "gptq"]

_ROWS_PER_SLICE = 128


@dataclass(frozen=True, slots=True)
class Window:
    """How a protocol cuts and scores: windows of `size`, rows from `first_row` on are scored."""

    size: int
    first_row: int
    bos_in_each: bool

    @property
    def n_scored(self) -> int:
        """Tokens scored in each window; the last row has no token that follows."""
        return self.size - 1 - self.first_row


PROTOCOLS: dict[str, Window] = {
    "llama.cpp": Window(512, 256, bos_in_each=True),
    "gptq": Window(2048, 0, bos_in_each=False),
}


def window_of(protocol: str, size: int | None = None) -> Window:
    """Look a protocol up.

    Parameters
    ----------
    protocol : {"llama.cpp", "gptq"}
    size : int or None
        Tokens of a window, in place of the protocol's own; "llama.cpp" scores its second half.

    Raises
    ------
    InvalidArgumentError
        If the protocol is unknown or the size below 4.
    """
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(
            f"protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}"
        )
    window = PROTOCOLS[protocol]
    if size is None:
        return window
    if type(size) is not int or size < 4:
        raise InvalidArgumentError(f"a window of {size!r} tokens; expected an integer >= 4")
    return Window(size, size // 2 if window.first_row else 0, window.bos_in_each)


def cut(tokenizer: Tokenizer, text: str, protocol: str, window: Window) -> list[list[int]]:
    """Cut a text into windows that do not overlap; what does not fill one at its end is left out.

    Raises
    ------
    InvalidArgumentError
        If the text does not fill one window.
    """
    tokens = tokenizer.encode(text)
    size = window.size
    if len(tokens) < size:
        raise InvalidArgumentError(
            f"the text has {len(tokens)} tokens; protocol {protocol} needs {size} at least"
        )
    windows = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
    if window.bos_in_each:
        for tokens in windows:
            tokens[0] = tokenizer.bos_id
    return windows


def scored_logits(
    engine: Engine, tokens: Sequence[int], first_row: int
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """Compute rows first_row to len(tokens) - 2 of one window, a slice of rows at a time.

    Yields
    ------
    logits : float32, (n, vocab_size)
        n is 128 but for the last slice.
    targets : list of int
        The token that follows each row.
    """
    # The last token is only predicted, never fed.
    n_fed = len(tokens) - 1
    sequence = CachedSequence(engine.pool, n_fed, wait=True, finishes=True)
    try:
        if first_row:
            engine.forward([Span(sequence, tokens[:first_row], 0)])
        for start in range(first_row, n_fed, _ROWS_PER_SLICE):
            end = min(start + _ROWS_PER_SLICE, n_fed)
            logits = engine.forward([Span(sequence, tokens[start:end], end - start)])
            yield logits, list(tokens[start + 1 : end + 1])
    finally:
        sequence.release()
