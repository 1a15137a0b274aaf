"""The two sides of bench_peers.py behind one face: a row in, seconds out."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llama2q import _core, memory
from llama2q.bench import Bench, Kind
from llama2q.engine import Engine

N_CTX = 4096
BATCH_N_CTX = 128


@dataclass(frozen=True, slots=True)
class Job:
    """A row to be measured on both sides; fields as in `llama2q.bench.BenchRow`."""

    kind: Kind
    tokens: int
    depth: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        """For people."""
        text = {
            "prefill": f"prefill {self.tokens}",
            "decode": f"decode at depth {self.depth}",
            "step": f"step of {self.tokens}",
            "batch": f"decode, {self.sequences} sequences",
        }
        return text[self.kind]

    def rate(self, seconds: float) -> float:
        """Tokens per second of all sequences, from the seconds of a call."""
        per_call = self.tokens if self.kind in ("prefill", "step") else self.sequences
        return per_call / seconds


@dataclass(frozen=True, slots=True)
class Setting:
    """How the peer's context is made."""

    kv: str
    flash_attention: bool

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kv}, {'FA' if self.flash_attention else 'no FA'}"


class Peer:
    """llama.cpp with a model open, in a process of its own; a context manager ends it."""

    def __init__(
        self,
        driver: Path,
        model: Path,
        setting: Setting,
        *,
        n_threads: int,
        n_ctx: int = N_CTX,
        n_sequences: int = 1,
    ) -> None:
        started = time.perf_counter()
        numbers = map(str, (n_threads, n_ctx, n_sequences))
        flash = str(int(setting.flash_attention))
        self._process = subprocess.Popen(
            [driver, model, *numbers, setting.kv, flash],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise RuntimeError("the driver of llama.cpp did not start; see stderr")
        self.ready_seconds = time.perf_counter() - started

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def seconds(self, job: Job) -> float:
        """Measure a row once."""
        other = job.sequences if job.kind == "batch" else job.depth
        return float(self._ask(f"{job.kind} {job.tokens} {other}"))

    def logits(self, ids: Sequence[int], vocab_size: int) -> NDArray[np.float64]:
        """Return the logits (n, vocab_size) of every token of a text."""
        values = self._ask("logits " + " ".join(map(str, ids))).split()
        return np.array(values, np.float64).reshape(len(ids), vocab_size)

    def resident_bytes(self) -> tuple[int | None, int | None]:
        """Return anonymous and mapped bytes of the process."""
        return memory.resident_bytes(self._process.pid)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the driver of llama.cpp ended; see stderr")
        return line.strip()


class Ours:
    """One of our files, open with one KV type; a context manager closes it."""

    def __init__(
        self,
        path: Path,
        kv_dtype: _core.KvDtype,
        *,
        n_threads: int,
        isa: str | None,
        limits: dict[str, float],
        n_ctx: int = N_CTX,
        n_sequences: int = 1,
    ) -> None:
        self._engine = Engine(
            path,
            n_ctx=n_ctx,
            kv_dtype=kv_dtype,
            n_threads=n_threads,
            isa=isa,
            max_sequences=n_sequences,
        )
        self._bench = Bench(self._engine, limits)
        self._bench.warm_up()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._engine.close()

    def seconds(self, job: Job) -> float:
        """Measure a row once."""
        return self._bench.seconds(job.kind, job.tokens, job.depth, job.sequences)

    def share(self, job: Job, seconds: float) -> tuple[str | None, float | None]:
        """Return what bounds the row, and the bound's share of the seconds."""
        return self._bench.share(job.kind, job.tokens, job.depth, job.sequences, seconds)
