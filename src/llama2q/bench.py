"""How fast a model runs here: reading a prompt, decoding, and how near that is to the limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q import _core, memory
from llama2q.engine import Engine
from llama2q.errors import ContextLengthError, InvalidArgumentError
from llama2q.format.reader import L2qFile
from llama2q.kv_blocks import BLOCK, blocks_for
from llama2q.kv_sequence import Sequence
from llama2q.plan import KvChoice, kv_bytes_per_token, threads_for
from llama2q.ragged import Span

Kind: TypeAlias = Literal["prefill", "decode", "step", "batch"]
Progress: TypeAlias = Callable[[int, int, str], None]

_CHUNK = 512
"""Tokens of a prompt per forward call, as `generate` hands them over or more."""
_STEP_SECONDS = 1.0
"""How long a step is repeated, at least three times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to measure; every tuple may be empty.

    Attributes
    ----------
    prefill : tuple of int
        Lengths of prompts in tokens, from an empty cache.
    decode : int
        Tokens decoded one by one, per sequence; 0 leaves decoding out.
    depth : tuple of int
        Tokens in the cache before decoding and before steps.
    step : tuple of int
        Tokens of one sequence in one forward call, logits of all of them, as speculation asks.
    batch : tuple of int
        Sequences that decode together, at depth 0.
    kv_dtype : {"auto", "f32", "f16", "int8"}
    n_threads : int or None
        None takes the physical cores that this process may use.
    isa : str or None
        None takes LLAMA2Q_ISA or the fastest.
    repeat : int
        How often each is measured; the median counts.
    limit_seconds : float
        Time for each probe of the machine's limits; 0 leaves them out.
    """

    prefill: tuple[int, ...] = (512,)
    decode: int = 32
    depth: tuple[int, ...] = (0,)
    step: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    kv_dtype: KvChoice = "auto"
    n_threads: int | None = None
    isa: str | None = None
    repeat: int = 1
    limit_seconds: float = 1.0

    def check(self) -> None:
        """Raise InvalidArgumentError for what is outside its range."""
        for name in ("prefill", "step", "batch"):
            _check_numbers(name, getattr(self, name), 1)
        _check_numbers("depth", self.depth, 0)
        _check_numbers("decode", (self.decode,), 0)
        _check_numbers("repeat", (self.repeat,), 1)
        if not 0 <= self.limit_seconds <= 60:
            raise InvalidArgumentError(
                f"limit_seconds is {self.limit_seconds}; expected 0 (left out) to 60"
            )

    def longest(self) -> tuple[int, str]:
        """Return the tokens of the longest sequence, and what asks for them."""
        deepest = max(self.depth, default=0)
        needs = [(n, f"a prompt of {n} tokens") for n in self.prefill]
        if self.decode and (self.depth or self.batch):
            total = deepest + self.decode
            needs.append((total, f"depth {deepest} and {self.decode} decoded tokens"))
        if self.depth:
            needs += [(deepest + n, f"depth {deepest} and a step of {n} tokens") for n in self.step]
        return max(needs, default=(1, "nothing"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One measurement.

    Attributes
    ----------
    kind : {"prefill", "decode", "step", "batch"}
    tokens : int
        Of the prompt, decoded per sequence, or of the step.
    depth : int
        Tokens in the cache before.
    sequences : int
    tokens_per_second : float
        Of all sequences together; the median of the repetitions.
    seconds : float
        Of one forward call: of the whole prompt for "prefill".
    samples : list of float
        Tokens per second of each repetition.
    limit : {"bandwidth", "dots"} or None
        What bounds it: reading weights and cache once, or the int8 dots of the matmuls.
    share_of_limit : float or None
        The time that this bound alone takes, over the measured time.
    """

    kind: Kind
    tokens: int
    depth: int
    sequences: int
    tokens_per_second: float
    seconds: float
    samples: list[float]
    limit: str | None
    share_of_limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All measurements of a run; sizes in bytes.

    Attributes
    ----------
    limits : dict
        "read_bytes_per_second" and "int8_ops_per_second" of all threads; empty if left out.
    load_seconds : float
        Opening the file until the first token could be computed.
    peak_rss_bytes : int
        Largest resident size of the process so far.
    anonymous_bytes, mapped_bytes : int or None
        What is resident now: own memory, and pages of files; None where the system does not say.
    """

    file: str
    quant: str
    isa: str
    n_threads: int
    kv_dtype: str
    n_ctx: int
    load_seconds: float
    limits: dict[str, float]
    rows: list[BenchRow] = field(default_factory=list)
    peak_rss_bytes: int
    anonymous_bytes: int | None
    mapped_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def bench(
    path: str | Path, settings: BenchSettings | None = None, progress: Progress | None = None
) -> BenchReport:
    """Measure a model file.

    Tokens are random; nothing is sampled. A cache is brought to its depth by computing the first
    64 positions and copying their keys and values, so that depth costs no time.

    Parameters
    ----------
    path : str or Path
        A `.l2q` file.
    settings : BenchSettings or None
    progress : callable or None
        Called with (done, total, what is measured next).

    Raises
    ------
    InvalidArgumentError
        If a setting is outside its range.
    ContextLengthError
        If a row needs more tokens than the model's context holds.
    """
    settings = settings or BenchSettings()
    settings.check()
    n_ctx, asks = settings.longest()
    with L2qFile(path) as file:
        longest = file.config.max_seq_len
    if n_ctx > longest:
        raise ContextLengthError(
            f"{asks} are {n_ctx} tokens; the model's context holds {longest}: ask for less"
        )
    limits = measure_limits(settings) if settings.limit_seconds else {}
    started = time.perf_counter()
    with Engine(
        path,
        n_ctx=n_ctx,
        kv_dtype=settings.kv_dtype,
        n_threads=settings.n_threads,
        isa=settings.isa,
        max_sequences=max(settings.batch, default=1),
    ) as engine:
        load_seconds = time.perf_counter() - started
        rows = Bench(engine, limits).run(settings, progress)
        anonymous, mapped = memory.resident_bytes()
        return BenchReport(
            file=engine.file.path.name,
            quant=engine.file.recipe.quant,
            isa=engine.isa,
            n_threads=engine.n_threads,
            kv_dtype=engine.kv_dtype,
            n_ctx=engine.n_ctx,
            load_seconds=load_seconds,
            limits=limits,
            rows=rows,
            peak_rss_bytes=memory.peak_resident_bytes(),
            anonymous_bytes=anonymous,
            mapped_bytes=mapped,
        )


def measure_limits(settings: BenchSettings) -> dict[str, float]:
    """Return the best rates that the probes of the core reach."""
    n_threads, seconds = threads_for(settings.n_threads), settings.limit_seconds
    reads = _core.measure_read_bandwidth(settings.isa, n_threads, seconds=seconds)
    dots = _core.measure_dot_rate(settings.isa, n_threads, seconds)
    return {
        "read_bytes_per_second": max(reads.values()),
        "int8_ops_per_second": max(dots.values()),
    }


class Bench:
    """Measures one loaded model, row by row."""

    def __init__(self, engine: Engine, limits: dict[str, float]) -> None:
        self._engine = engine
        self._limits = limits
        self._random = np.random.default_rng(0)
        self._kv_bytes = kv_bytes_per_token(engine.config, engine.kv_dtype)
        matrices = [engine.file.matrix(name) for name in engine.file.recipe.tensors]
        read = [matrix for matrix in matrices if not matrix.is_table]
        self._weight_bytes = sum(tensor.nbytes for m in read for tensor in m.tensors())
        head = sum(m.n_weights for m in read if m.name == "output.weight")
        self._head_ops = 2 * head
        self._layer_ops = 2 * (sum(m.n_weights for m in read) - head)
        self._is_quantized = engine.file.recipe.quant != "none"

    def run(self, settings: BenchSettings, progress: Progress | None = None) -> list[BenchRow]:
        """Measure everything that the settings ask for."""
        jobs: list[tuple[Kind, int, int]] = [("prefill", n, 0) for n in settings.prefill]
        for depth in settings.depth:
            if settings.decode:
                jobs.append(("decode", settings.decode, depth))
            jobs += [("step", n, depth) for n in settings.step]
        if settings.decode:
            jobs += [("batch", n, 0) for n in settings.batch]
        self.warm_up()
        rows = []
        for done, (kind, n, depth) in enumerate(jobs):
            if progress is not None:
                progress(done, len(jobs), f"{kind} {n}" + (f" at {depth}" if depth else ""))
            if kind == "batch":
                rows.append(self.row(kind, settings.decode, depth, settings.repeat, sequences=n))
            else:
                rows.append(self.row(kind, n, depth, settings.repeat))
        return rows

    def warm_up(self) -> None:
        """Touch weights and work space."""
        for n in (1, 16, 1):
            self._prefill(min(n, self._engine.n_ctx))

    def row(
        self, kind: Kind, tokens: int, depth: int = 0, repeat: int = 1, *, sequences: int = 1
    ) -> BenchRow:
        """Measure one row; `tokens` as in BenchRow."""
        times = [self.seconds(kind, tokens, depth, sequences) for _ in range(repeat)]
        per_call = tokens if kind in ("prefill", "step") else sequences
        seconds = statistics.median(times)
        limit, share = self.share(kind, tokens, depth, sequences, seconds)
        return BenchRow(
            kind=kind,
            tokens=tokens,
            depth=depth,
            sequences=sequences,
            tokens_per_second=per_call / seconds,
            seconds=seconds,
            samples=[per_call / time for time in times],
            limit=limit,
            share_of_limit=share,
        )

    def seconds(self, kind: Kind, tokens: int, depth: int = 0, sequences: int = 1) -> float:
        """Measure once: the seconds of a forward call, or of a whole prompt."""
        if kind == "prefill":
            return self._prefill(tokens)
        if kind == "step":
            return self._step(tokens, depth)
        return self._decode(tokens, depth, sequences)

    def share(
        self, kind: Kind, tokens: int, depth: int, sequences: int, seconds: float
    ) -> tuple[str | None, float | None]:
        """Return the bound that takes longest and its share of the seconds of a call."""
        if not self._limits:
            return None, None
        if kind == "prefill":
            # Every chunk reads the weights again; what it wrote to the cache is left out.
            n_bytes = float(self._weight_bytes * -(-tokens // _CHUNK))
            ops = self._layer_ops * tokens + self._head_ops
        elif kind == "step":
            n_bytes = self._weight_bytes + self._kv_bytes * (depth + tokens)
            ops = (self._layer_ops + self._head_ops) * tokens
        else:
            positions = depth + (tokens + 1) / 2
            n_bytes = self._weight_bytes + self._kv_bytes * positions * sequences
            ops = (self._layer_ops + self._head_ops) * sequences
        bounds = {"bandwidth": n_bytes / self._limits["read_bytes_per_second"]}
        if self._is_quantized:
            bounds["dots"] = ops / self._limits["int8_ops_per_second"]
        limit = max(bounds, key=bounds.__getitem__)
        return limit, bounds[limit] / seconds

    def _tokens(self, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self._engine.config.vocab_size, count, dtype=np.int32)

    def _sequence(self, stack: ExitStack, depth: int, capacity: int) -> Sequence:
        """Make a sequence with `depth` tokens in its cache, each block written."""
        sequence = Sequence(self._engine.pool, depth + capacity)
        stack.callback(sequence.release)
        if depth:
            n_computed = min(depth, BLOCK)
            self._engine.forward([Span(sequence, self._tokens(n_computed).tolist(), 0)])
            sequence.ensure(depth)
            for block in sequence.blocks[1 : blocks_for(depth)]:
                self._engine.copy_block(sequence.blocks[0], block)
            sequence.advance(depth - n_computed)
        return sequence

    def _prefill(self, tokens: int) -> float:
        """Return the seconds that a prompt takes, logits of its last token included."""
        with ExitStack() as stack:
            sequence = self._sequence(stack, 0, tokens)
            ids = self._tokens(tokens).tolist()
            started = time.perf_counter()
            for first in range(0, tokens, _CHUNK):
                chunk = ids[first : first + _CHUNK]
                is_last = first + _CHUNK >= tokens
                self._engine.forward([Span(sequence, chunk, int(is_last))])
            return time.perf_counter() - started

    def _decode(self, tokens: int, depth: int, sequences: int) -> float:
        """Return the seconds of a forward call that appends a token to each sequence: the mean."""
        with ExitStack() as stack:
            batch = [self._sequence(stack, depth, tokens) for _ in range(sequences)]
            ids = self._tokens(tokens * sequences).reshape(tokens, sequences).tolist()
            started = time.perf_counter()
            for row in ids:
                self._engine.forward([Span(s, [i]) for s, i in zip(batch, row, strict=True)])
            return (time.perf_counter() - started) / tokens

    def _step(self, tokens: int, depth: int) -> float:
        """Return the seconds of a forward call of some tokens: the median of several."""
        with ExitStack() as stack:
            sequence = self._sequence(stack, depth, tokens)
            ids = self._tokens(tokens).tolist()
            times: list[float] = []
            while len(times) < 3 or sum(times) < _STEP_SECONDS:
                started = time.perf_counter()
                self._engine.forward([Span(sequence, ids, tokens)])
                times.append(time.perf_counter() - started)
                sequence.rewind(depth)
            return statistics.median(times)


def _check_numbers(name: str, values: tuple[int, ...], least: int) -> None:
    for value in values:
        if type(value) is not int or value < least:
            raise InvalidArgumentError(f"{name} is {value!r}; expected an integer >= {least}")
