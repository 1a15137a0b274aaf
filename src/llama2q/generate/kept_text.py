"""A text whose keys and values stay in the cache from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as AbstractSequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from llama2q.engine import Engine
from llama2q.errors import KvCacheFullError
from llama2q.kv_sequence import Sequence as CachedSequence


class KeptText:
    """Token ids of a text, and whatever of it is in the cache.

    The ids are the text; the cache may hold less of it, more than it (after a rewind), or nothing,
    as others may take its blocks between two calls. `hold` makes the two agree: what is computed
    after it never depends on what the cache held before.
    """

    def __init__(self, engine: Engine, ids: AbstractSequence[int] = ()) -> None:
        self._engine = engine
        self.ids = list(ids)
        self._sequence: CachedSequence | None = None
        self._last: NDArray[np.float32] | None = None

    def hold(
        self,
        ids: AbstractSequence[int],
        capacity: int,
        *,
        wait: bool,
        finishes: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[CachedSequence, NDArray[np.float32] | None]:
        """Return a sequence that holds a beginning of a text, and room for the rest.

        Parameters
        ----------
        ids : sequence of int
            The text that is to be computed, at least one token.
        capacity : int
            Most tokens that the sequence will hold.
        wait, finishes, cancelled
            See `BlockPool.reserve`, also for what it raises.

        Returns
        -------
        Sequence
            Lacks the last token at least, unless the logits after it are known.
        float32, (vocab_size,), or None
            Those, if the sequence holds the whole text.
        """
        last, self._last = self._last, None
        if self._sequence is not None:
            held = self._sequence.token_ids or ()
            if held != tuple(ids):
                last = None
            most = len(ids) - (last is None)
            if self._sequence.resume(
                min(n_common(held, ids), most),
                capacity,
                wait=wait,
                finishes=finishes,
                cancelled=cancelled,
            ):
                return self._sequence, last
            self._sequence = None
        self._sequence = CachedSequence(
            self._engine.pool,
            capacity,
            begins=ids[:-1],
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
        )
        return self._sequence, None

    def settle(self, ids: AbstractSequence[int], last: NDArray[np.float32] | None = None) -> None:
        """Let the text be these ids, and its blocks be taken by others who need them.

        Parameters
        ----------
        ids : sequence of int
        last : float32, (vocab_size,), or None
            Logits after the last of them, where the sequence holds them all.
        """
        self.ids = list(ids)
        self._last = last
        if self._sequence is not None:
            self._sequence.park()

    def copy(self) -> KeptText:
        """Return another one of the same text: full blocks are shared, a last part is copied."""
        other = KeptText(self._engine, self.ids)
        with self.computed() as (sequence, n_tokens):
            if sequence is None:
                return other
            # Where there is no room, it is computed again when it is needed.
            with suppress(KvCacheFullError):
                other._sequence = sequence.fork(n_tokens, n_tokens, self._engine.copy_block)
                other._sequence.park()
                other._last = self._last
        return other

    def replace(self, ids: AbstractSequence[int], sequence: CachedSequence | None) -> None:
        """Become another text, of which a parked sequence may hold a beginning."""
        self.release()
        self.ids = list(ids)
        self._sequence = sequence

    @contextmanager
    def computed(self) -> Iterator[tuple[CachedSequence | None, int]]:
        """Give a sequence that stays for now, and how many tokens of the text it holds."""
        sequence = self._sequence
        if sequence is None or not sequence.unpark():
            yield None, 0
            return
        try:
            yield sequence, n_common(sequence.token_ids or (), self.ids)
        finally:
            sequence.park()

    def release(self) -> None:
        """Give back every block; the ids stay."""
        self._last = None
        if self._sequence is not None:
            self._sequence.release()
            self._sequence = None


def n_common(a: AbstractSequence[int], b: AbstractSequence[int]) -> int:
    """Return how many tokens two texts have in common from their start."""
    n_tokens = min(len(a), len(b))
    if tuple(a[:n_tokens]) == tuple(b[:n_tokens]):
        return n_tokens
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
