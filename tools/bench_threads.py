"""Measures the thread pool: beside a busy neighbour, with too many threads, and at rest.

Prints medians of alternating runs on one synthetic model: decoding speed with a thread per core,
the same beside a process that keeps one of these cores busy, and with four threads per core; the
CPU time of a process whose model is loaded but idle; and what splitting an op among threads costs.

Run it as `python3 tools/bench_threads.py [--model FILE] [--rounds N] [--steps N]`, with llama2q
installed. Without a file it writes one of about 1 GB into a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import synthetic_l2q
from llama2q.config import ModelConfig
from llama2q.engine import Engine
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span

MINI_TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "data" / "mini" / "tokenizer.model"
# Layers of the 7B model, but eight of 32.
MODEL = ModelConfig(
    dim=4096, hidden_dim=11008, n_layers=8, n_heads=32, n_kv_heads=32, vocab_size=4096,
    norm_eps=1e-5, max_seq_len=2048,
)  # fmt: skip
# Five ops a layer, next to no work in them: what is left is the cost of splitting them.
HOLLOW = ModelConfig(
    dim=64, hidden_dim=64, n_layers=100, n_heads=2, n_kv_heads=2, vocab_size=4096,
    norm_eps=1e-5, max_seq_len=2048,
)  # fmt: skip
OPS_PER_LAYER = 5
SPINNER = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@dataclass(frozen=True, slots=True)
class Setting:
    """A number of threads, and whether a neighbour keeps one core busy."""

    name: str
    n_threads: int
    busy: bool = False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a .l2q file; default: a synthetic one")
    parser.add_argument("--rounds", type=int, default=7, help="alternations")
    parser.add_argument("--steps", type=int, default=40, help="decoding steps per run")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.model
        if path is None:
            path = Path(folder) / "model.l2q"
            synthetic_l2q.write_l2q(MODEL, MINI_TOKENIZER.read_bytes(), path)
        hollow = Path(folder) / "hollow.l2q"
        synthetic_l2q.write_l2q(HOLLOW, MINI_TOKENIZER.read_bytes(), hollow)
        measure(path, chosen.rounds, chosen.steps)
        measure_splitting(hollow)
    return 0


def measure(path: Path, rounds: int, steps: int) -> None:
    """Print speeds relative to a thread per core, and the CPU time of an idle process."""
    cores = len(os.sched_getaffinity(0))
    alone = Setting(f"{cores} threads", cores)
    settings = [
        alone,
        Setting(f"{cores} threads, busy neighbour", cores, busy=True),
        Setting(f"{4 * cores} threads", 4 * cores),
    ]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    with ExitStack() as stack:
        engines = {
            n: stack.enter_context(Engine(path, n_ctx=512, n_threads=n, max_sequences=1))
            for n in {setting.n_threads for setting in settings}
        }
        for engine in engines.values():
            decode(engine, 3)
        for _ in range(rounds):
            for setting in settings:
                with neighbour(max(os.sched_getaffinity(0))) if setting.busy else ExitStack():
                    rates[setting].append(decode(engines[setting.n_threads], steps))
        idle = idle_seconds()
    base = statistics.median(rates[alone])
    note = f"load average {os.getloadavg()[0]:.1f}"
    print(f"{path.stat().st_size / 1e9:.2f} GB, {cores} cores, {note}")
    print(f"{'decoding':<32}{'tok/s':>8}{'share':>8}{'worst':>8}")
    for setting in settings:
        shares = [mine / first for mine, first in zip(rates[setting], rates[alone], strict=True)]
        print(
            f"{setting.name:<32}{statistics.median(rates[setting]):>8.2f}"
            f"{statistics.median(shares):>8.1%}{min(rates[setting]) / base:>8.1%}"
        )
    print(f"CPU time in a second at rest: {idle * 1e3:.2f} ms")


def decode(engine: Engine, steps: int) -> float:
    """Return steps per second of a fresh sequence, the first step not counted."""
    sequence = Sequence(engine.pool, steps + 1)
    try:
        engine.forward([Span(sequence, [1])])
        started = time.perf_counter()
        for _ in range(steps):
            engine.forward([Span(sequence, [5])])
        return steps / (time.perf_counter() - started)
    finally:
        sequence.release()


def idle_seconds() -> float:
    """Return the CPU time that this process uses in a second of sleep."""
    started = time.process_time()
    time.sleep(1.0)
    return time.process_time() - started


@contextmanager
def neighbour(cpu: int) -> Iterator[None]:
    """Keep a core busy with another process of the same priority."""
    with subprocess.Popen([sys.executable, "-c", SPINNER, str(cpu)]) as process:
        try:
            time.sleep(0.3)
            yield
        finally:
            process.kill()


def measure_splitting(path: Path) -> None:
    """Print the time of an op with next to no work in it, for several numbers of threads."""
    print("an op with next to no work in it:", end="")
    cores = len(os.sched_getaffinity(0))
    for n_threads in (1, cores, 4 * cores):
        with Engine(path, n_ctx=512, n_threads=n_threads, max_sequences=1) as engine:
            decode(engine, 20)
            rate = statistics.median(decode(engine, 40) for _ in range(5))
        microseconds = 1e6 / rate / (OPS_PER_LAYER * HOLLOW.n_layers)
        print(f"  {microseconds:.2f} us with {n_threads} thread(s)", end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
