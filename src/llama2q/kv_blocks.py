"""Who owns which block of the KV cache.

A block holds the keys and values of `BLOCK` positions in every layer. The pool hands out block ids
and counts references; the C++ core computes on the tables it is given and knows no owners. A
sequence reserves what it may need at worst when it starts, so that it never runs dry half way.
Full blocks whose tokens are known stay in the cache when nobody holds them any more, and are found
by what they hold, until their place is needed: `prefix_cache`.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as AbstractSequence
from contextlib import AbstractContextManager
from typing import Protocol

from llama2q.errors import CancelledError, InvalidArgumentError, KvCacheFullError
from llama2q.prefix_cache import BLOCK, PrefixIndex

__all__ = ["BLOCK", "BlockPool", "blocks_for"]


def blocks_for(n_tokens: int) -> int:
    """Return how many blocks hold this many positions."""
    return -(-n_tokens // BLOCK)


class GaveWayError(Exception):
    """A parked owner lost its blocks while it waited for more; for who called `reserve` alone."""


class Parked(Protocol):
    """An owner of blocks that stands still, and can do without them."""

    def release(self) -> None:
        """Give every block back."""


class BlockPool:
    """Free list, reference counts and contents of all blocks; usable from any thread."""

    def __init__(self, n_blocks: int, *, root: bytes = b"", most_cached: int | None = None) -> None:
        """Make a pool whose blocks are all free.

        Parameters
        ----------
        n_blocks : int
            How many there are.
        root : bytes
            Where the chains of keys begin; see `prefix_cache.root_key`.
        most_cached : int or None
            Most blocks that are kept though nobody holds them; None for all of them.
        """
        if n_blocks < 1:
            raise InvalidArgumentError(f"a pool of {n_blocks} KV blocks; expected at least 1")
        self._n_blocks = n_blocks
        self.root = root
        self._most_cached = n_blocks if most_cached is None else most_cached
        self._index = PrefixIndex()
        self._free = list(range(n_blocks))
        self._references = [0] * n_blocks
        self._reserved = 0
        self._finishing = 0
        self._parked: dict[Parked, None] = {}  # a dict keeps the order: the longest unused is first
        self._changed = threading.Condition(threading.RLock())

    @property
    def n_blocks(self) -> int:
        """Number of blocks in all."""
        return self._n_blocks

    @property
    def n_free(self) -> int:
        """Number of blocks that nobody holds, those kept for what they hold included."""
        with self._changed:
            return len(self._free) + self._index.n_idle

    @property
    def n_cached(self) -> int:
        """Number of blocks that nobody holds and that are kept for what they hold."""
        return self._index.n_idle

    @property
    def n_available(self) -> int:
        """Number of blocks that nobody holds or has reserved."""
        with self._changed:
            return self.n_free - self._reserved

    def allocate(self, count: int, *, reserved: bool = False) -> list[int]:
        """Take blocks, each with one reference: all of them or none.

        Empty ones come first, by their ids, then those that were used longest ago.

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
            else:
                while count > self.n_available:
                    if not self._drop_parked():
                        raise self._full(count)
            blocks = [
                heapq.heappop(self._free) if self._free else self._index.evict()
                for _ in range(count)
            ]
            for block in blocks:
                self._references[block] = 1
            return blocks

    def n_references(self, block: int) -> int:
        """Return how many owners hold the block."""
        return self._references[block]

    def retain(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block: to all of them or to none."""
        with self._changed:
            blocks = list(blocks)
            for block in blocks:
                if self._references[block] < 1:
                    raise InvalidArgumentError(f"KV block {block} is free; cannot share it")
            self._hold(blocks)

    def park(self, owner: Parked) -> None:
        """From now on, an owner's blocks may be taken from it: when no others are left."""
        with self._changed:
            self._parked[owner] = None
            self._changed.notify_all()

    def unpark(self, owner: Parked) -> None:
        """Leave an owner the blocks that it has."""
        with self._changed:
            self._parked.pop(owner, None)

    def locked(self) -> AbstractContextManager[object]:
        """Keep other threads from the pool for a moment; waiting for blocks lets them in."""
        return self._changed

    def _drop_parked(self, spared: Parked | None = None) -> bool:
        """Take the blocks of the owner that has been parked longest; False if there is none."""
        owner = next((owner for owner in self._parked if owner is not spared), None)
        if owner is None:
            return False
        del self._parked[owner]
        owner.release()
        return True

    def publish(self, block: int, key: bytes) -> None:
        """Let a full block that the caller holds be found by its key from now on."""
        with self._changed:
            self._index.add(block, key)

    def withdraw(self, block: int) -> bool:
        """Let a block be found no more, as its owner is about to write it.

        Returns
        -------
        bool
            False, and nothing is done, if others hold it, too.
        """
        with self._changed:
            if self._references[block] > 1:
                return False
            self._index.forget(block)
            return True

    def adopt(self, keys: Iterable[bytes]) -> list[int]:
        """Take the cached blocks of the first keys, as far as they are there.

        The caller has reserved as many blocks; what it does not need any more is given back.

        Returns
        -------
        list of int
            Block ids, each with one reference more.
        """
        with self._changed:
            blocks = self._hold(self._index.find(keys))
            self._reserved -= len(blocks)
            self._changed.notify_all()
            return blocks

    def _hold(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            if self._references[block] == 0:
                self._index.wake(block)
            self._references[block] += 1
        return blocks

    def release(self, blocks: AbstractSequence[int], *, keep_reserved: bool = False) -> int:
        """Drop one reference of each block; one without references is free.

        What a free one holds is kept as long as its place is not needed; of a sequence's blocks the
        first ones are kept longest, as the others are of no use without them.

        Parameters
        ----------
        blocks : sequence of int
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
            for block in reversed(blocks):
                if self._references[block] < 1:
                    raise InvalidArgumentError(f"KV block {block} is already free")
                self._references[block] -= 1
                if self._references[block] == 0:
                    if not self._index.rest(block):
                        heapq.heappush(self._free, block)
                    freed += 1
            while self._index.n_idle > self._most_cached:
                heapq.heappush(self._free, self._index.evict())
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
        keys: AbstractSequence[bytes] = (),
        owner: Parked | None = None,
    ) -> list[int]:
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
        keys : sequence of bytes
            Keys of the first of the blocks, `count` at most: those that are cached are taken, and
            only the others set aside.
        owner : Parked or None
            Who asks, if he is parked: he is not when this returns. While he waits, others may take
            what he has.

        Returns
        -------
        list of int
            The blocks taken, in the order of the keys, each with one reference more.

        Raises
        ------
        KvCacheFullError
            If fewer are available and no owner is known to finish.
        CancelledError
            If `cancelled` said so.
        GaveWayError
            If `owner` lost his blocks.
        """
        with self._changed:
            while True:
                if owner is not None and owner not in self._parked:
                    raise GaveWayError
                found = self._index.find(keys)
                # Those that others hold take nothing from what is available.
                needed = count - sum(self._references[block] > 0 for block in found)
                if needed <= self.n_available:
                    break
                if self._drop_parked(owner):
                    continue
                if not wait or count > self._n_blocks or not self._finishing:
                    raise self._full(needed)
                if cancelled is not None and cancelled():
                    raise CancelledError("cancelled while waiting for KV-cache blocks")
                self._changed.wait(0.1)
            self._reserved += count - len(found)
            self._finishing += finishes
            if owner is not None:
                del self._parked[owner]
            return self._hold(found)

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
