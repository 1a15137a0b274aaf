"""Sharing of blocks by what they hold: against a plain model of it, in any order of calls."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from builders import text
from llama2q.errors import KvCacheFullError
from llama2q.kv_blocks import BLOCK, BlockPool, blocks_for
from llama2q.kv_sequence import Sequence

N_BLOCKS = 9


class CacheMachine(RuleBasedStateMachine):
    """Blocks "hold" the text up to their last token: whoever reads a block reads his own text.

    Texts are of few letters, so that beginnings are often equal.
    """

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(N_BLOCKS, most_cached=5)
        self.open: list[Sequence] = []
        self.chains: dict[int, tuple[int, ...]] = {}

    def compute(self, sequence: Sequence, ids: list[int]) -> None:
        """What a step does: write each token behind all that come before it, then append."""
        before = list(sequence.token_ids or ())
        for i in range(len(ids)):
            block = sequence.blocks[(len(before) + i) // BLOCK]
            owners = [s for s in self.open if block in s.blocks]
            assert owners == [sequence], "a shared block is written"
            self.chains[block] = tuple(before + ids[: i + 1])
        sequence.append(ids)

    @rule(
        target=sequences,
        letters=st.lists(st.integers(0, 1), max_size=4),
        rest=st.integers(0, BLOCK - 1),
        spare=st.integers(0, BLOCK),
    )
    def start(self, letters: list[int], rest: int, spare: int) -> Sequence | None:
        ids = text(*letters, rest=rest)
        try:
            sequence = Sequence(self.pool, len(ids) + spare, begins=ids)
        except KvCacheFullError:
            return None
        self.open.append(sequence)
        assert sequence.n_tokens % BLOCK == 0
        new = ids[sequence.n_tokens :]
        del new[: sequence.adopt(new)]
        sequence.ensure(len(ids))
        self.compute(sequence, new)
        assert sequence.token_ids == tuple(ids)
        return sequence

    @rule(sequence=sequences, letter=st.integers(0, 1), n_tokens=st.integers(1, BLOCK))
    def grow(self, sequence: Sequence | None, letter: int, n_tokens: int) -> None:
        if sequence is None or not sequence.unpark():
            return
        try:
            sequence.ensure(sequence.n_tokens + n_tokens)
        except KvCacheFullError:
            return
        self.compute(sequence, [letter] * n_tokens)

    @rule(sequence=sequences, data=st.data())
    def shrink(self, sequence: Sequence | None, data: st.DataObject) -> None:
        if sequence is None or not sequence.unpark():
            return
        n_tokens = data.draw(st.integers(0, sequence.n_tokens))
        before = sequence.token_ids
        sequence.rewind_near(n_tokens)
        assert before is not None
        assert sequence.token_ids == before[: sequence.n_tokens]
        assert sequence.n_tokens in (n_tokens, n_tokens // BLOCK * BLOCK)

    @rule(target=sequences, sequence=sequences, data=st.data())
    def fork(self, sequence: Sequence | None, data: st.DataObject) -> Sequence | None:
        if sequence is None or not sequence.unpark():
            return None
        n_tokens = data.draw(st.integers(0, sequence.n_tokens))

        def copy(source: int, destination: int) -> None:
            self.chains[destination] = self.chains[source]

        try:
            fork = sequence.fork(n_tokens, n_tokens + BLOCK, copy)
        except KvCacheFullError:
            return None
        self.open.append(fork)
        return fork

    @rule(sequence=sequences)
    def park(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            sequence.park()

    @rule(sequence=consumes(sequences))
    def stop(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            sequence.release()

    @invariant()
    def everybody_reads_his_own_text(self) -> None:
        for sequence in self.open:
            ids = sequence.token_ids or ()
            for i, block in enumerate(sequence.blocks[: blocks_for(sequence.n_tokens)]):
                end = min((i + 1) * BLOCK, sequence.n_tokens)
                assert self.chains[block][:end] == ids[:end]
                assert len(self.chains[block]) <= (i + 1) * BLOCK

    @invariant()
    def counts_are_those_of_the_tables(self) -> None:
        tables = [block for sequence in self.open for block in sequence.blocks]
        for block in range(N_BLOCKS):
            assert self.pool.n_references(block) == tables.count(block)
        assert self.pool.n_free == N_BLOCKS - len(set(tables))
        assert 0 <= self.pool.n_available <= self.pool.n_free
        assert self.pool.n_cached <= min(5, self.pool.n_free)

    @invariant()
    def what_can_be_written_has_one_owner(self) -> None:
        tables = [block for sequence in self.open for block in sequence.blocks]
        for sequence in self.open:
            for block in sequence.blocks[sequence.n_tokens // BLOCK :]:
                assert tables.count(block) == 1

    def teardown(self) -> None:
        for sequence in self.open:
            sequence.release()
        assert self.pool.n_available == self.pool.n_free == N_BLOCKS
        assert sorted(self.pool.allocate(N_BLOCKS)) == list(range(N_BLOCKS))
        assert self.pool.n_cached == 0


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30)
