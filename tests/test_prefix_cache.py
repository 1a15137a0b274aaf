"""Sharing of blocks of the KV cache by what they hold, eviction, parked sequences."""

from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pytest

from builders import text
from llama2q.errors import InvalidArgumentError, KvCacheFullError
from llama2q.kv_blocks import BLOCK, BlockPool
from llama2q.kv_sequence import Sequence
from llama2q.prefix_cache import TokenChain, root_key
from llama2q.rope_scaling import RopeScaling

PLAIN = RopeScaling()


def run(pool: BlockPool, ids: list[int], capacity: int | None = None) -> Sequence:
    """Start a sequence and compute what the cache does not hold."""
    sequence = Sequence(pool, capacity or len(ids), begins=ids)
    new = ids[sequence.n_tokens :]
    sequence.ensure(len(ids))
    sequence.append(new)
    return sequence


# --- keys -------------------------------------------------------------------------------------


def test_keys_are_a_sha256_chain() -> None:
    ids = text(5, 6, rest=3)
    chain = TokenChain(b"root", ids)
    first = hashlib.sha256(b"root" + np.full(64, 5, "<i4").tobytes()).digest()
    second = hashlib.sha256(first + np.full(64, 6, "<i4").tobytes()).digest()
    assert chain.keys == (first, second)
    assert chain.ids == tuple(ids)


def test_keys_do_not_depend_on_how_the_tokens_came() -> None:
    ids = list(range(5 * BLOCK + 9))
    whole = TokenChain(b"", ids)
    grown = TokenChain(b"")
    for start in range(0, len(ids), 37):
        grown.append(ids[start : start + 37])
    assert grown.keys == whole.keys
    grown.truncate(2 * BLOCK + 1)
    assert grown.keys == whole.keys[:2]
    assert tuple(grown.continued(ids[2 * BLOCK + 1 :])) == whole.keys
    assert len(grown) == 2 * BLOCK + 1


def test_root_depends_on_all_that_keys_and_values_do() -> None:
    roots = {
        root_key("a" * 64, "f16", PLAIN),
        root_key("b" * 64, "f16", PLAIN),
        root_key("a" * 64, "int8", PLAIN),
        root_key("a" * 64, "f16", _yarn(1.0)),
        root_key("a" * 64, "f16", _yarn(1.25)),
    }
    assert len(roots) == 5
    assert {len(root) for root in roots} == {32}


def _yarn(attention_factor: float) -> RopeScaling:
    """Scalings whose frequencies are the same."""
    return RopeScaling(
        scaling="yarn",
        factor=2.0,
        original_max_seq_len=512,
        attention_factor=attention_factor,
    )


# --- what is shared ---------------------------------------------------------------------------


def test_blocks_stay_when_nobody_holds_them() -> None:
    pool = BlockPool(6)
    run(pool, text(1, 2, rest=5)).release()
    assert (pool.n_available, pool.n_free, pool.n_cached) == (6, 6, 2)
    again = Sequence(pool, 4 * BLOCK, begins=text(1, 2, 3))
    assert (again.n_tokens, again.blocks) == (2 * BLOCK, (0, 1))
    assert (pool.n_available, pool.n_free, pool.n_cached) == (2, 4, 0)
    assert again.token_ids == tuple(text(1, 2))


def test_a_block_that_is_not_full_is_never_shared() -> None:
    pool = BlockPool(6)
    first = run(pool, text(1, rest=63), 3 * BLOCK)
    second = Sequence(pool, 2 * BLOCK, begins=text(1, rest=64))
    assert second.n_tokens == BLOCK
    first.append([7])
    assert second.adopt([7] * BLOCK) == BLOCK
    assert second.blocks == first.blocks


def test_text_that_differs_before_shares_nothing_after() -> None:
    pool = BlockPool(9)
    run(pool, text(1, 2, 3)).release()
    assert Sequence(pool, 3 * BLOCK, begins=text(4, 2, 3)).n_tokens == 0
    assert Sequence(pool, 3 * BLOCK, begins=text(1, 4, 3)).n_tokens == BLOCK


def test_equal_blocks_behind_different_ones_are_not_the_same() -> None:
    pool = BlockPool(6)
    run(pool, text(1, 2)).release()
    run(pool, text(3, 4)).release()
    assert Sequence(pool, 2 * BLOCK, begins=text(1, 4)).n_tokens == BLOCK


def test_unknown_tokens_are_not_published() -> None:
    pool = BlockPool(4)
    sequence = Sequence(pool, 2 * BLOCK)
    sequence.ensure(2 * BLOCK)
    sequence.append(text(1, 2))
    assert (sequence.token_ids, sequence.adopt(text(3))) == (None, 0)
    sequence.release()
    assert pool.n_cached == 0


def test_most_public() -> None:
    pool = BlockPool(4)
    sequence = Sequence(pool, 3 * BLOCK, begins=(), most_public=2 * BLOCK + 5)
    sequence.ensure(3 * BLOCK)
    sequence.append(text(1, 2, 3))
    sequence.release()
    assert pool.n_cached == 2


def test_equal_texts_computed_side_by_side() -> None:
    """The first that is ready is found; the other is its owner's alone."""
    pool = BlockPool(4)
    one, two = (Sequence(pool, BLOCK, begins=text(1)) for _ in range(2))
    for sequence in (one, two):
        sequence.ensure(BLOCK)
        sequence.append(text(1))
    two.release()
    assert pool.n_cached == 0
    one.release()
    assert pool.n_cached == 1


def test_capacity_limits_what_is_taken() -> None:
    pool = BlockPool(6)
    run(pool, text(1, 2, 3)).release()
    sequence = Sequence(pool, 2 * BLOCK, begins=text(1, 2, 3))
    assert sequence.n_tokens == 2 * BLOCK
    assert pool.n_available == 4


# --- eviction ---------------------------------------------------------------------------------


def test_empty_blocks_first_then_the_longest_unused_then_ends_before_beginnings() -> None:
    pool = BlockPool(6)
    run(pool, text(1, 2)).release()
    run(pool, text(3, 4)).release()
    Sequence(pool, BLOCK, begins=text(1)).release()  # used again: now behind 3, 4
    assert pool.allocate(2) == [4, 5]
    assert pool.allocate(1) == [1]  # of 1, 2 the end, which was not used again
    assert pool.allocate(1) == [3]
    assert pool.allocate(1) == [2]
    assert pool.allocate(1) == [0]
    with pytest.raises(KvCacheFullError):
        pool.allocate(1)


def test_held_blocks_are_not_evicted() -> None:
    pool = BlockPool(4)
    held = run(pool, text(1, 2))
    run(pool, text(3)).release()
    assert sorted(pool.allocate(2)) == [2, 3]
    with pytest.raises(KvCacheFullError):
        pool.allocate(1)
    held.release()


def test_budget() -> None:
    pool = BlockPool(8, most_cached=2)
    run(pool, text(1, 2, 3)).release()
    assert pool.n_cached == 2
    run(pool, text(4)).release()
    assert pool.n_cached == 2
    assert Sequence(pool, 3 * BLOCK, begins=text(1, 2, 3)).n_tokens == BLOCK
    none = BlockPool(4, most_cached=0)
    run(none, text(1)).release()
    assert none.n_cached == 0


def test_shared_blocks_are_not_reserved_twice() -> None:
    """Two texts with a common beginning fit where two texts without do not."""
    pool = BlockPool(6)
    first = run(pool, text(1, 2, 3, 4))
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 6 * BLOCK, begins=text(5, 2, 3, 4))
    second = Sequence(pool, 6 * BLOCK, begins=text(1, 2, 3, 4))
    assert pool.n_available == 0
    first.release()
    assert pool.n_available == 0
    second.release()
    assert pool.n_available == 6


def test_rewind_into_a_published_block_withdraws_it() -> None:
    pool = BlockPool(4)
    sequence = run(pool, text(1, 2), 3 * BLOCK)
    sequence.rewind(BLOCK + 3)
    sequence.append([9])
    assert Sequence(pool, 2 * BLOCK, begins=text(1, 2)).n_tokens == BLOCK


def test_rewind_near() -> None:
    pool = BlockPool(8)
    first = run(pool, text(1, 2), 3 * BLOCK)
    second = run(pool, text(1, 2), 3 * BLOCK)
    with pytest.raises(InvalidArgumentError, match="block 1 is shared"):
        first.rewind(BLOCK + 5)
    first.rewind_near(BLOCK + 5)
    assert first.token_ids == tuple(text(1))
    second.rewind_near(BLOCK + 5)
    assert second.n_tokens == BLOCK + 5


# --- parked sequences -------------------------------------------------------------------------


def test_parked_sequences_give_way_the_longest_parked_first() -> None:
    pool = BlockPool(6)
    one, two = run(pool, text(1, 2, rest=1)), run(pool, text(3, rest=1))
    two.park()
    one.park()
    assert pool.n_available == 1
    third = Sequence(pool, 2 * BLOCK, begins=())
    assert one.unpark()
    assert not two.unpark()
    assert one.n_tokens == 2 * BLOCK + 1
    with pytest.raises(KvCacheFullError):
        Sequence(pool, 3 * BLOCK)
    one.release()
    third.release()
    assert pool.n_available == 6


def test_parked_reservation_is_given_back() -> None:
    pool = BlockPool(4)
    sequence = run(pool, text(1, rest=1), 4 * BLOCK)
    sequence.ensure(3 * BLOCK)
    assert pool.n_available == 0
    sequence.park()
    assert (pool.n_available, len(sequence.blocks)) == (2, 2)
    with pytest.raises(KvCacheFullError):
        sequence.resume(BLOCK + 1, 5 * BLOCK)
    assert sequence.resume(BLOCK + 1, 4 * BLOCK)
    assert pool.n_available == 0
    sequence.release()
    assert not sequence.resume(0, BLOCK)
    assert pool.n_available == 4


def test_resume_rewinds() -> None:
    pool = BlockPool(4)
    sequence = run(pool, text(1, 2, rest=1))
    sequence.park()
    assert sequence.resume(BLOCK, 2 * BLOCK)
    assert (sequence.n_tokens, len(sequence.blocks), pool.n_available) == (BLOCK, 1, 2)


def test_parked_owners_that_wait_give_way_to_each_other() -> None:
    """Two that hold half of the blocks each want all of them, while a third one has the rest."""
    pool = BlockPool(5)
    one, two = run(pool, text(1, 2)), run(pool, text(3, 4))
    one.park()
    two.park()
    busy = Sequence(pool, BLOCK, finishes=True)
    results: list[bool] = []

    def go_on(sequence: Sequence) -> None:
        results.append(sequence.resume(2 * BLOCK, 5 * BLOCK, wait=True, finishes=True))
        if not results[-1]:
            sequence = Sequence(pool, 5 * BLOCK, wait=True, finishes=True)
        sequence.release()

    threads = [threading.Thread(target=go_on, args=(sequence,)) for sequence in (one, two)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    busy.release()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert len(results) == 2
    assert pool.n_available == 5
