"""The cached tokens of one text: its table of KV blocks, and what it has reserved."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

from llama2q.errors import ClosedError, InvalidArgumentError
from llama2q.kv_blocks import BLOCK, BlockPool, GaveWayError, blocks_for
from llama2q.prefix_cache import TokenChain


class Sequence:
    """The cached tokens of one text: a table of blocks and a length in tokens."""

    def __init__(
        self,
        pool: BlockPool,
        capacity: int,
        *,
        shared: AbstractSequence[int] = (),
        begins: AbstractSequence[int] | None = None,
        most_public: int | None = None,
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
        begins : sequence of int or None
            Token ids that the text will begin with. It starts with the cached blocks of these, so
            `n_tokens` is a multiple of `BLOCK`; the blocks that it fills are published in turn.
            None: the tokens are nobody's concern, nothing is shared.
        most_public : int or None
            Most tokens whose blocks are published; None for all.
        wait, finishes, cancelled
            See `BlockPool.reserve`, also for what it raises.
        """
        self._pool = pool
        self._finishes = finishes
        self._most_public = most_public
        self._chain = None if begins is None else TokenChain(pool.root)
        self._blocks: list[int] = []
        self._n_tokens = 0
        self._released = False
        keys = TokenChain(pool.root, begins or ()).keys
        self._n_reserved = max(blocks_for(capacity) - len(shared), 0)
        found = pool.reserve(
            self._n_reserved,
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
            keys=keys[: self._n_reserved],
        )
        self._n_reserved -= len(found)
        self._begin_with(found, begins or ())
        try:
            pool.retain(shared)
        except InvalidArgumentError:
            pool.unreserve(self._n_reserved, finishes=finishes)
            raise
        self._blocks += shared
        self._n_tokens += len(shared) * BLOCK

    def _begin_with(self, blocks: AbstractSequence[int], ids: AbstractSequence[int]) -> None:
        """Take blocks that hold the first of these tokens as the next ones."""
        n_tokens = len(blocks) * BLOCK
        self._blocks += blocks
        self._n_tokens += n_tokens
        if self._chain is not None:
            self._chain.append(ids[:n_tokens])

    @property
    def blocks(self) -> tuple[int, ...]:
        """Ids of the blocks, in the order of positions."""
        return tuple(self._blocks)

    @property
    def n_tokens(self) -> int:
        """Number of tokens whose keys and values are in the cache."""
        return self._n_tokens

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """Those tokens, if they are known."""
        return None if self._chain is None else self._chain.ids

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
            most_public=self._most_public,
            wait=wait,
            finishes=finishes,
            cancelled=cancelled,
        )
        try:
            if n_rest:
                sequence.ensure(n_tokens)
                copy_block(self._blocks[n_full], sequence._blocks[n_full])
                sequence.advance(n_rest)
            if self._chain is not None:
                sequence._chain = TokenChain(self._pool.root, self._chain.ids[:n_tokens])
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

    def adopt(self, ids: AbstractSequence[int]) -> int:
        """Go on with cached blocks of the next tokens, as far as there are any.

        Parameters
        ----------
        ids : sequence of int
            The tokens that come next.

        Returns
        -------
        int
            How many of them are in the cache now and need not be computed.
        """
        if self._chain is None or len(ids) < BLOCK:
            return 0
        if self._n_tokens != len(self._blocks) * BLOCK:
            return 0
        keys = self._chain.continued(ids)[len(self._blocks) :]
        found = self._pool.adopt(keys[: self._n_reserved])
        self._n_reserved -= len(found)
        self._begin_with(found, ids)
        return len(found) * BLOCK

    def advance(self, n_tokens: int) -> None:
        """Count tokens that a step has appended, of a sequence that does not know its tokens."""
        if self._chain is not None:
            raise InvalidArgumentError("this sequence knows its tokens: append them")
        self._grow(n_tokens)

    def append(self, ids: AbstractSequence[int]) -> None:
        """Take note of tokens that a step has appended; blocks that are full now are published."""
        self._grow(len(ids))
        if self._chain is None:
            return
        first = len(self._chain.keys)
        self._chain.append(ids)
        for index in range(first, self._n_tokens // BLOCK):
            if self._most_public is None or (index + 1) * BLOCK <= self._most_public:
                self._pool.publish(self._blocks[index], self._chain.keys[index])

    def _grow(self, n_tokens: int) -> None:
        if self._n_tokens + n_tokens > len(self._blocks) * BLOCK:
            raise InvalidArgumentError(
                f"{self._n_tokens} + {n_tokens} tokens are beyond {len(self._blocks)} blocks"
            )
        self._n_tokens += n_tokens

    def park(self) -> None:
        """Give back what is reserved; from now on the blocks, too, may be taken when needed."""
        with self._pool.locked():
            if self._released:
                return
            spare = self._blocks[blocks_for(self._n_tokens) :]
            del self._blocks[len(self._blocks) - len(spare) :]
            self._pool.release(spare)
            self._pool.unreserve(self._n_reserved, finishes=self._finishes)
            self._n_reserved = 0
            self._finishes = False
            self._pool.park(self)

    def unpark(self) -> bool:
        """Keep the blocks for a moment; False if they were taken: then the sequence is released."""
        with self._pool.locked():
            if self._released:
                return False
            self._pool.unpark(self)
            self._pool.reserve(0, finishes=not self._finishes)
            self._finishes = True
            return True

    def resume(
        self,
        n_tokens: int,
        capacity: int,
        *,
        wait: bool = False,
        finishes: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> bool:
        """Go on with a parked sequence, after its first tokens.

        Parameters
        ----------
        n_tokens : int
            Where to go on; see `rewind_near`.
        capacity : int
            Most tokens that it will hold from now on.
        wait, finishes, cancelled
            See `BlockPool.reserve`, also for what it raises: then it is still parked.

        Returns
        -------
        bool
            False if its blocks were taken: then the sequence is released.
        """
        with self._pool.locked():
            if self._released:
                return False
            self.park()  # also after an interrupt in the middle of a call
            self.rewind_near(n_tokens)
            self._pool.unreserve(self._n_reserved)
            self._n_reserved = 0
            more = max(blocks_for(capacity) - len(self._blocks), 0)
            try:
                self._pool.reserve(
                    more, wait=wait, finishes=finishes, cancelled=cancelled, owner=self
                )
            except GaveWayError:
                return False
            self._n_reserved = more
            self._finishes = finishes
            return True

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
        if n_tokens % BLOCK and not self._pool.withdraw(self._blocks[keep - 1]):
            raise InvalidArgumentError(
                f"cannot rewind to {n_tokens} tokens: block {keep - 1} is shared, so its end is "
                f"no place to write; rewind to a multiple of {BLOCK}"
            )
        dropped = self._blocks[keep:]
        del self._blocks[keep:]
        self._n_reserved += self._pool.release(dropped, keep_reserved=True)
        self._n_tokens = n_tokens
        if self._chain is not None:
            self._chain.truncate(n_tokens)

    def rewind_near(self, n_tokens: int) -> None:
        """Rewind; where that would open a shared block, to the beginning of this block."""
        try:
            self.rewind(n_tokens)
        except InvalidArgumentError:
            self.rewind(n_tokens // BLOCK * BLOCK)

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        self._pool.unpark(self)
        if self._released:
            return
        self._released = True
        self._pool.release(self._blocks)
        self._pool.unreserve(self._n_reserved, finishes=self._finishes)
        self._blocks.clear()
        self._n_reserved = self._n_tokens = 0
