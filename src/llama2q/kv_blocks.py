"""Who owns which block of the KV cache.

A block holds the keys and values of `BLOCK` positions in every layer. The pool hands out block ids
and counts references; the C++ core computes on the tables it is given and knows no owners. A
sequence reserves what it may need at worst when it starts, so that it never runs dry half way.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as AbstractSequence

from llama2q.errors import CancelledError, ClosedError, InvalidArgumentError, KvCacheFullError

BLOCK = 64
"""Positions per block."""


def blocks_for(n_tokens: int) -> int:
    """Return how many blocks hold this many positions."""
    return -(-n_tokens // BLOCK)


class BlockPool:
    """Free list and reference counts of all blocks; usable from any thread."""

    def __init__(self, n_blocks: int) -> None:
        if n_blocks < 1:
            raise InvalidArgumentError(f"a pool of {n_blocks} KV blocks; expected at least 1")
        self._n_blocks = n_blocks
        self._free = list(range(n_blocks))
        self._references = [0] * n_blocks
        self._reserved = 0
        self._finishing = 0
        self._changed = threading.Condition(threading.RLock())

    @property
    def n_blocks(self) -> int:
        """Number of blocks in all."""
        return self._n_blocks

    @property
    def n_free(self) -> int:
        """Number of blocks that nobody holds."""
        return len(self._free)

    @property
    def n_available(self) -> int:
        """Number of blocks that nobody holds or has reserved."""
        with self._changed:
            return len(self._free) - self._reserved

    def allocate(self, count: int, *, reserved: bool = False) -> list[int]:
        """Take blocks, lowest ids first, each with one reference: all of them or none.

        Parameters
        ----------
        count : int
            How many.
        reserved : bool
            Take them out of what `reserve` set aside.

        Raises
        ------
        KvCacheFullError
            If fewer are available.
        """
        with self._changed:
            if reserved:
                self._reserved -= count
            elif count > self.n_available:
                raise self._full(count)
            blocks = [heapq.heappop(self._free) for _ in range(count)]
            for block in blocks:
                self._references[block] = 1
            return blocks

    def n_references(self, block: int) -> int:
        """Return how many owners hold the block."""
        return self._references[block]

    def retain(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block: to all of them or to none."""
        blocks = tuple(blocks)
        with self._changed:
            for block in blocks:
                if self._references[block] < 1:
                    raise InvalidArgumentError(f"KV block {block} is free; cannot share it")
            for block in blocks:
                self._references[block] += 1

    def release(self, blocks: Iterable[int], *, keep_reserved: bool = False) -> int:
        """Drop one reference of each block; one without references is free.

        Parameters
        ----------
        blocks : iterable of int
            Block ids.
        keep_reserved : bool
            Reserve again, for the same owner, what becomes free.

        Returns
        -------
        int
            How many became free.
        """
        freed = 0
        with self._changed:
            for block in blocks:
                if self._references[block] < 1:
                    raise InvalidArgumentError(f"KV block {block} is already free")
                self._references[block] -= 1
                if self._references[block] == 0:
                    heapq.heappush(self._free, block)
                    freed += 1
            self._reserved += freed * keep_reserved
            self._changed.notify_all()
        return freed

    def reserve(
        self,
        count: int,
        *,
        wait: bool = False,
        finishes: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Set blocks aside for later `allocate(..., reserved=True)`.

        Parameters
        ----------
        count : int
            How many.
        wait : bool
            Wait while they are not available but will be: while another owner finishes by itself.
        finishes : bool
            This owner finishes by itself (a running call, not a stream that may stand still).
        cancelled : callable or None
            Asked about every 100 ms while waiting; True ends the wait.

        Raises
        ------
        KvCacheFullError
            If fewer are available and no owner is known to finish.
        CancelledError
            If `cancelled` said so.
        """
        with self._changed:
            while count > self.n_available:
                if not wait or count > self._n_blocks or not self._finishing:
                    raise self._full(count)
                if cancelled is not None and cancelled():
                    raise CancelledError("cancelled while waiting for KV-cache blocks")
                self._changed.wait(0.1)
            self._reserved += count
            self._finishing += finishes

    def unreserve(self, count: int, *, finishes: bool = False) -> None:
        """Give back what `reserve` set aside and nothing was allocated from."""
        with self._changed:
            self._reserved -= count
            self._finishing -= finishes
            self._changed.notify_all()

    def _full(self, count: int) -> KvCacheFullError:
        return KvCacheFullError(
            f"the KV cache has {self.n_available} of {self._n_blocks} blocks available; {count} "
            f"({count * BLOCK} tokens) are needed: close streams that are still open, lower "
            "max_tokens, or load the model with a smaller n_ctx"
        )


class Sequence:
    """The cached tokens of one text: a table of blocks and a length in tokens."""

    def __init__(
        self,
        pool: BlockPool,
        capacity: int,
        *,
        shared: AbstractSequence[int] = (),
        wait: bool = False,
        finishes: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Reserve blocks for a sequence.

        Parameters
        ----------
        pool : BlockPool
            Where blocks come from.
        capacity : int
            Most tokens that the sequence will ever hold.
        shared : sequence of int
            Full blocks of another sequence, which this one begins with: it holds a reference to
            each and never writes them.
        wait, finishes, cancelled
            See `BlockPool.reserve`, also for what it raises.
        """
        self._pool = pool
        self._n_reserved = max(blocks_for(capacity) - len(shared), 0)
        self._finishes = finishes
        self._blocks: list[int] = []
        self._n_tokens = 0
        self._released = False
        pool.reserve(self._n_reserved, wait=wait, finishes=finishes, cancelled=cancelled)
        try:
            pool.retain(shared)
        except InvalidArgumentError:
            pool.unreserve(self._n_reserved, finishes=finishes)
            raise
        self._blocks += shared
        self._n_tokens = len(shared) * BLOCK

    @property
    def blocks(self) -> tuple[int, ...]:
        """Ids of the blocks, in the order of positions."""
        return tuple(self._blocks)

    @property
    def n_tokens(self) -> int:
        """Number of tokens whose keys and values are in the cache."""
        return self._n_tokens

    def fork(
        self,
        n_tokens: int,
        capacity: int,
        copy_block: Callable[[int, int], None],
        *,
        wait: bool = False,
        finishes: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> Sequence:
        """Make a sequence that begins with the first tokens of this one.

        Full blocks are shared; a last one that is not full is copied, since both write on in it.

        Parameters
        ----------
        n_tokens : int
            How many tokens both have; this one may have more, and go on growing.
        capacity : int
            Most tokens that the new sequence will ever hold.
        copy_block : callable
            Copies the keys and values of one block (first argument) to another.
        wait, finishes, cancelled
            See `BlockPool.reserve`, also for what it raises.

        Raises
        ------
        InvalidArgumentError
            If this sequence has fewer tokens.
        """
        if not 0 <= n_tokens <= self._n_tokens:
            raise InvalidArgumentError(
                f"cannot fork at {n_tokens} tokens; the sequence has {self._n_tokens}"
            )
        n_full, n_rest = divmod(n_tokens, BLOCK)
        sequence = Sequence(
            self._pool,
            capacity,
            shared=self._blocks[:n_full],
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
        )
        try:
            if n_rest:
                sequence.ensure(n_tokens)
                copy_block(self._blocks[n_full], sequence._blocks[n_full])
                sequence.advance(n_rest)
        except BaseException:
            sequence.release()
            raise
        return sequence

    def ensure(self, n_tokens: int) -> None:
        """Own blocks enough for this many tokens.

        Raises
        ------
        ClosedError
            If the sequence was released.
        KvCacheFullError
            If that is beyond the capacity and no block is available.
        """
        if self._released:
            raise ClosedError("this sequence has been released")
        missing = blocks_for(n_tokens) - len(self._blocks)
        if missing <= 0:
            return
        from_reserve = min(missing, self._n_reserved)
        beyond = self._pool.allocate(missing - from_reserve)
        self._blocks += self._pool.allocate(from_reserve, reserved=True) + beyond
        self._n_reserved -= from_reserve

    def advance(self, n_tokens: int) -> None:
        """Count tokens that a step has appended."""
        if self._n_tokens + n_tokens > len(self._blocks) * BLOCK:
            raise InvalidArgumentError(
                f"{self._n_tokens} + {n_tokens} tokens are beyond {len(self._blocks)} blocks"
            )
        self._n_tokens += n_tokens

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first tokens; blocks no longer needed stay reserved, unless shared.

        Raises
        ------
        InvalidArgumentError
            If there are fewer tokens, or the next one would be written into a shared block.
        """
        if not 0 <= n_tokens <= self._n_tokens:
            raise InvalidArgumentError(
                f"cannot rewind to {n_tokens} tokens; the sequence has {self._n_tokens}"
            )
        keep = blocks_for(n_tokens)
        if n_tokens % BLOCK and self._pool.n_references(self._blocks[keep - 1]) > 1:
            raise InvalidArgumentError(
                f"cannot rewind to {n_tokens} tokens: block {keep - 1} is shared, so its end is "
                f"no place to write; rewind to a multiple of {BLOCK}"
            )
        dropped = self._blocks[keep:]
        del self._blocks[keep:]
        self._n_reserved += self._pool.release(dropped, keep_reserved=True)
        self._n_tokens = n_tokens

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        if self._released:
            return
        self._released = True
        self._pool.release(self._blocks)
        self._pool.unreserve(self._n_reserved, finishes=self._finishes)
        self._blocks.clear()
        self._n_reserved = self._n_tokens = 0
