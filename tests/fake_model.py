"""A stand-in for the core's Model: remembers tokens by block, and says what a test tells it to."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama2q import Llama, _core
from llama2q.errors import CancelledError
from llama2q.kv_blocks import BLOCK

LogitsOf = Callable[[tuple[int, ...]], NDArray[np.float32]]
N_LAYERS = 4


class FakeModel:
    """Its "keys and values" are the token ids themselves, so a wrong table or position shows."""

    def __init__(self, logits_of: LogitsOf, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.n_threads = 1
        self.isa = _core.default_isa()
        self.kv_dtype = "f32"
        self.notes: list[str] = []
        self.logits_of = logits_of
        self.cache = np.full((n_blocks, BLOCK), -1, np.int32)
        self.layer_seconds = 0.0
        self.in_step = threading.Event()
        self.on_step: Callable[[int], None] = lambda n: None
        self.n_steps = 0
        self.step_sizes: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def step(
        self,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequence_of_token: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        output_rows: NDArray[np.int32],
        output: str = "logits",
        cancel: _core.CancelFlag | None = None,
    ) -> NDArray[np.float32]:
        arrays = (token_ids, positions, sequence_of_token, block_tables, output_rows)
        assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)
        held = block_tables[block_tables >= 0].tolist()
        written = block_tables[sequence_of_token, positions // BLOCK].tolist()
        assert all(held.count(block) == 1 for block in written), "a shared block is written"
        with self._lock:
            self.n_steps += 1
            self.step_sizes.append(len(token_ids))
            self.in_step.set()
            self.on_step(self.n_steps)
            for _ in range(N_LAYERS):
                if cancel is not None and cancel.is_set():
                    raise CancelledError("cancelled")
                time.sleep(self.layer_seconds)
            for token, position, sequence in zip(
                token_ids, positions, sequence_of_token, strict=True
            ):
                block = block_tables[sequence, position // BLOCK]
                assert 0 <= block < self.n_blocks
                self.cache[block, position % BLOCK] = token
            rows = [self.logits_of(self._history(i, *arrays)) for i in output_rows]
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def copy_blocks(self, source: NDArray[np.int32], destination: NDArray[np.int32]) -> None:
        self.copies += zip(source.tolist(), destination.tolist(), strict=True)
        self.cache[destination] = self.cache[source]

    def _history(self, i: int, *arrays: NDArray[np.int32]) -> tuple[int, ...]:
        _, positions, sequence_of_token, block_tables, _ = arrays
        n = int(positions[i]) + 1
        table = block_tables[sequence_of_token[i]]
        tokens = np.concatenate([self.cache[block] for block in table[: -(-n // BLOCK)]])[:n]
        return tuple(tokens.tolist())


class FakeLlama(Protocol):
    """Makes a Llama over a FakeModel; keywords go to Engine."""

    def __call__(
        self, logits_of: LogitsOf | None = None, **options: Any
    ) -> tuple[Llama, FakeModel]: ...


def scripted(script: Sequence[int], n_prompt: int, vocab_size: int) -> LogitsOf:
    """After the prompt, the likeliest tokens are those of the script, one after the other."""

    def logits_of(history: tuple[int, ...]) -> NDArray[np.float32]:
        row = np.zeros(vocab_size, np.float32)
        row[script[(len(history) - n_prompt) % len(script)]] = 9.0
        return row

    return logits_of


def by_hash(vocab_size: int) -> LogitsOf:
    """Logits that depend on every token before them, and never on anything else."""
    table = np.random.default_rng(1).normal(0, 4, vocab_size).astype(np.float32)
    table[:3] = -99.0  # never unknown, BOS or EOS

    def logits_of(history: tuple[int, ...]) -> NDArray[np.float32]:
        seed = zlib.crc32(np.array(history, np.int32).tobytes())
        return np.concatenate([table[:3], np.roll(table[3:], seed % vocab_size)])

    return logits_of
