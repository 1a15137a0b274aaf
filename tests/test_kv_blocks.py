"""BlockPool and Sequence: reservation, sharing, rewinding, and no block lost or held twice."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llama2q.errors import ClosedError, InvalidArgumentError, KvCacheFullError
from llama2q.kv_blocks import BLOCK, BlockPool, blocks_for
from llama2q.kv_sequence import Sequence


def test_blocks_for() -> None:
    assert [blocks_for(n) for n in (0, 1, 63, 64, 65, 4096)] == [0, 1, 1, 1, 2, 64]


def test_lowest_id_first() -> None:
    pool = BlockPool(5)
    assert pool.allocate(3) == [0, 1, 2]
    pool.release([1])
    pool.release([0])
    assert pool.allocate(3) == [0, 1, 3]


def test_all_or_nothing() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    with pytest.raises(KvCacheFullError, match=r"1 of 3 blocks available; 2 \(128 tokens\)"):
        pool.allocate(2)
    assert pool.n_free == 1


def test_shared_block_is_free_after_the_last_release() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.retain(blocks)
    assert pool.release(blocks) == 0
    assert pool.n_free == 0
    assert pool.release(blocks) == 1
    with pytest.raises(InvalidArgumentError, match="already free"):
        pool.release(blocks)
    with pytest.raises(InvalidArgumentError, match="cannot share"):
        pool.retain(blocks)


def test_empty_pool_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="pool of 0"):
        BlockPool(0)


def test_sequence_grows_inside_its_reservation() -> None:
    pool = BlockPool(4)
    first = Sequence(pool, 3 * BLOCK)
    assert (pool.n_free, pool.n_available) == (4, 1)
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 2 * BLOCK)
    second = Sequence(pool, 1)
    second.ensure(1)
    first.ensure(BLOCK + 1)
    first.advance(BLOCK + 1)
    assert second.blocks == (0,)
    assert first.blocks == (1, 2)
    with pytest.raises(InvalidArgumentError, match="beyond 2 blocks"):
        first.advance(BLOCK)


def test_rewind_keeps_the_reservation() -> None:
    pool = BlockPool(3)
    sequence = Sequence(pool, 3 * BLOCK)
    sequence.ensure(3 * BLOCK)
    sequence.advance(3 * BLOCK)
    sequence.rewind(BLOCK)
    assert sequence.blocks == (0,)
    assert (pool.n_free, pool.n_available) == (2, 0)
    sequence.ensure(3 * BLOCK)
    assert sequence.blocks == (0, 1, 2)
    with pytest.raises(InvalidArgumentError, match="rewind to 65"):
        sequence.rewind(65)


def test_beyond_the_capacity() -> None:
    pool = BlockPool(2)
    sequence = Sequence(pool, 1)
    sequence.ensure(BLOCK + 1)
    with pytest.raises(KvCacheFullError):
        sequence.ensure(2 * BLOCK + 1)


def test_release_twice_and_use_after() -> None:
    pool = BlockPool(2)
    sequence = Sequence(pool, 2 * BLOCK)
    sequence.ensure(1)
    sequence.release()
    sequence.release()
    assert pool.n_available == 2
    with pytest.raises(ClosedError):
        sequence.ensure(1)


def test_waits_only_for_an_owner_that_finishes() -> None:
    pool = BlockPool(1)
    idle = Sequence(pool, 1)
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 1, wait=True)
    idle.release()
    running = Sequence(pool, 1, finishes=True)
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 1)
    timer = threading.Timer(0.05, running.release)
    timer.start()
    Sequence(pool, 1, wait=True).release()
    timer.join()
    assert pool.n_available == 1


def test_waiting_for_more_than_there_is() -> None:
    pool = BlockPool(2)
    running = Sequence(pool, 1, finishes=True)
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 3 * BLOCK, wait=True)
    running.release()


def filled(pool: BlockPool, n_tokens: int, capacity: int) -> Sequence:
    sequence = Sequence(pool, capacity)
    sequence.ensure(n_tokens)
    sequence.advance(n_tokens)
    return sequence


def test_fork_shares_full_blocks_and_copies_the_rest() -> None:
    pool = BlockPool(10)
    source = filled(pool, 2 * BLOCK + 5, 3 * BLOCK)
    copies: list[tuple[int, int]] = []
    fork = source.fork(2 * BLOCK + 3, 4 * BLOCK, lambda a, b: copies.append((a, b)))
    assert source.blocks == (0, 1, 2)
    assert fork.blocks == (0, 1, 3)
    assert copies == [(2, 3)]
    assert fork.n_tokens == 2 * BLOCK + 3
    assert pool.n_available == 10 - 3 - 2
    source.release()
    assert pool.n_free == 10 - 3
    fork.ensure(4 * BLOCK)
    fork.release()
    assert pool.n_available == pool.n_free == 10


def test_fork_at_a_block_boundary_copies_nothing() -> None:
    pool = BlockPool(4)
    source = filled(pool, 2 * BLOCK + 5, 3 * BLOCK)
    fork = source.fork(2 * BLOCK, 3 * BLOCK, pytest.fail)
    assert fork.blocks == (0, 1)
    fork.ensure(3 * BLOCK)
    assert fork.blocks == (0, 1, 3)


def test_fork_that_fails_leaves_nothing_behind() -> None:
    pool = BlockPool(4)
    source = filled(pool, BLOCK + 5, 2 * BLOCK)
    with pytest.raises(InvalidArgumentError, match="fork at 70 tokens; the sequence has 69"):
        source.fork(BLOCK + 6, 2 * BLOCK, pytest.fail)
    with pytest.raises(KvCacheFullError):
        source.fork(BLOCK + 5, 9 * BLOCK, pytest.fail)

    def fail(a: int, b: int) -> None:
        raise RuntimeError("no copy")

    with pytest.raises(RuntimeError, match="no copy"):
        source.fork(BLOCK + 5, 2 * BLOCK, fail)
    source.release()
    assert pool.n_available == pool.n_free == 4
    with pytest.raises(InvalidArgumentError, match="is free; cannot share"):
        Sequence(pool, BLOCK, shared=[2])
    assert pool.n_available == 4


def test_rewind_never_opens_a_shared_block() -> None:
    pool = BlockPool(6)
    source = filled(pool, 2 * BLOCK, 3 * BLOCK)
    fork = source.fork(2 * BLOCK, 3 * BLOCK, pytest.fail)
    with pytest.raises(InvalidArgumentError, match="block 1 is shared"):
        fork.rewind(BLOCK + 1)
    fork.rewind(BLOCK)
    assert fork.blocks == (0,)
    source.release()
    fork.rewind(1)
    fork.release()
    assert pool.n_available == pool.n_free == 6


class PoolMachine(RuleBasedStateMachine):
    """Any order of calls keeps every block in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.sequences: list[Sequence] = []

    @rule(capacity=st.integers(0, 5 * BLOCK))
    def start(self, capacity: int) -> None:
        before = self.pool.n_available
        if blocks_for(capacity) > before:
            with pytest.raises(KvCacheFullError):
                Sequence(self.pool, capacity)
        else:
            self.sequences.append(Sequence(self.pool, capacity))
            assert self.pool.n_available == before - blocks_for(capacity)

    @rule(data=st.data(), extra=st.integers(0, 2 * BLOCK))
    def fork(self, data: st.DataObject, extra: int) -> None:
        if self.sequences:
            source = data.draw(st.sampled_from(self.sequences))
            n_tokens = data.draw(st.integers(0, source.n_tokens))
            try:
                self.sequences.append(source.fork(n_tokens, n_tokens + extra, lambda a, b: None))
            except KvCacheFullError:
                pass

    @rule(data=st.data(), n_tokens=st.integers(0, 4 * BLOCK))
    def grow(self, data: st.DataObject, n_tokens: int) -> None:
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            owned = sequence.blocks
            try:
                sequence.ensure(sequence.n_tokens + n_tokens)
            except KvCacheFullError:
                assert sequence.blocks == owned
            else:
                sequence.advance(n_tokens)

    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            n_tokens = data.draw(st.integers(0, sequence.n_tokens))
            holders = [
                s.blocks.count(b)
                for s in self.sequences
                for b in sequence.blocks[n_tokens // BLOCK : n_tokens // BLOCK + 1]
            ]
            if n_tokens % BLOCK and sum(holders) > 1:
                with pytest.raises(InvalidArgumentError):
                    sequence.rewind(n_tokens)
            else:
                sequence.rewind(n_tokens)

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        if self.sequences:
            self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1))).release()

    @invariant()
    def every_block_has_one_place(self) -> None:
        held = [block for sequence in self.sequences for block in sequence.blocks]
        assert self.pool.n_free == 6 - len(set(held))
        for block in range(6):
            assert self.pool.n_references(block) == held.count(block)
        for sequence in self.sequences:
            for block in sequence.blocks[sequence.n_tokens // BLOCK :]:
                assert held.count(block) == 1, "a block that will be written is shared"
        assert 0 <= self.pool.n_available <= self.pool.n_free

    def teardown(self) -> None:
        for sequence in self.sequences:
            sequence.release()
        assert self.pool.n_available == self.pool.n_free == 6
        assert self.pool.allocate(6) == list(range(6))


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=50, stateful_step_count=30)
