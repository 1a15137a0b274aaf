"""Measures decoding under a memory limit: a cgroup without swap, the file's pages dropped before.

    python3 tools/bench_memory_limit.py 13b.l2q --limit 6GB
    python3 tools/bench_memory_limit.py 7b.l2q --limit 8GB --n-ctx 4096

The KV cache is full: all its blocks are written and each step decodes at the last position of the
context. Prints, with the limit and without it, tokens per second, bytes read and major faults per
token, and how fast the disk was read, beside its sequential rate (O_DIRECT, in the same run).
With --llama-bench and --gguf the same for llama.cpp. Needs Linux, root (it makes a memory cgroup),
and llama2q installed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llama2q.engine import Engine
from llama2q.kv_blocks import BLOCK, blocks_for
from llama2q.memory import parse_size

CGROUPS = Path("/sys/fs/cgroup")
DIRECT_BLOCK = 8 * 2**20
DIRECT_BYTES = 2**30


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a .l2q file")
    parser.add_argument("--limit", type=parse_size, default="6GB", help="as in 6GB or 5.5GiB")
    parser.add_argument("--n-ctx", type=int, default=512, help="tokens of the context")
    parser.add_argument("--kv", choices=["int8", "f16", "f32"], default="int8")
    parser.add_argument("--steps", type=int, default=6, help="decoding steps that are measured")
    parser.add_argument("--unlimited", action="store_true", help="measure without the limit too")
    parser.add_argument("--no-read-ahead", action="store_true", help="leave it to the system")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench")
    parser.add_argument("--gguf", type=Path, help="the same model for it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        print(json.dumps(run_steps(chosen)))
        return 0
    limits = [chosen.limit] + [None] * chosen.unlimited
    for limit in limits:
        report(measure(chosen, limit), limit, chosen.model)
    if chosen.llama_bench and chosen.gguf:
        for limit in limits:
            report_peer(measure_peer(chosen, limit), limit)
    return 0


def run_steps(chosen: argparse.Namespace) -> dict[str, Any]:
    """Load, fill the KV cache, decode; runs inside the cgroup."""
    started = time.perf_counter()
    with Engine(chosen.model, n_ctx=chosen.n_ctx, kv_dtype=chosen.kv, max_sequences=1) as engine:
        ready = time.perf_counter() - started
        model = engine._open_model()
        n_blocks = blocks_for(chosen.n_ctx)
        table = np.arange(n_blocks, dtype=np.int32)[None]
        ids, owner, row = np.ones(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)

        def step(position: int) -> float:
            started = time.perf_counter()
            model.step(ids, np.array([position], np.int32), owner, table, row)
            return time.perf_counter() - started

        read = bytes_read()
        first = step(0)
        first_read = bytes_read() - read
        others = np.arange(1, n_blocks, dtype=np.int32)
        model.copy_blocks(np.zeros_like(others), others)
        last = min(chosen.n_ctx, n_blocks * BLOCK) - 1
        step(last)
        faults, read = major_faults(), bytes_read()
        seconds = [step(last) for _ in range(chosen.steps)]
        return {
            "plan": engine.plan.message,
            "ready_seconds": ready,
            "first_seconds": first,
            "first_bytes_read": first_read,
            "seconds": seconds,
            "major_faults": (major_faults() - faults) / chosen.steps,
            "bytes_read": (bytes_read() - read) / chosen.steps,
            "anonymous_bytes": anonymous_bytes(),
            "kv_bytes": engine.plan.kv_bytes,
        }


def measure(chosen: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """Run the steps in a process of their own; read the disk before and after."""
    rates = [disk_rate(chosen.model)]
    drop_pages(chosen.model)
    command = [
        sys.executable, __file__, str(chosen.model), "--child", "--steps", str(chosen.steps),
        "--n-ctx", str(chosen.n_ctx), "--kv", chosen.kv,
    ]  # fmt: skip
    if chosen.no_read_ahead:
        patch = "import llama2q.read_ahead as r; r.CACHE_CAN_BE_STEERED = False; "
        run = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
        command[1:2] = ["-c", patch + run]
    found: dict[str, Any] = json.loads(run_limited(command, limit)[0])
    rates.append(disk_rate(chosen.model))
    return {**found, "disk_rate": statistics.median(rates)}


def run_limited(command: list[str], limit: int | None) -> tuple[str, int]:
    """Run a command, in a cgroup if there is a limit; return its output and major faults."""
    with cgroup(limit) if limit else ExitStack() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_majflt
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
            preexec_fn=(lambda: enter(folder)) if isinstance(folder, Path) else None,
        )
        return done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_majflt - before


@contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """Make a memory cgroup without swap, version 2 or 1."""
    is_v2 = (CGROUPS / "cgroup.controllers").exists()
    folder = (CGROUPS if is_v2 else CGROUPS / "memory") / f"llama2q-bench-{os.getpid()}"
    folder.mkdir()
    try:
        if is_v2:
            (folder / "memory.max").write_text(str(limit))
            (folder / "memory.swap.max").write_text("0")
        else:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
            (folder / "memory.swappiness").write_text("0")
        yield folder
    finally:
        folder.rmdir()


def enter(folder: Path) -> None:
    """Move this process into a cgroup."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def drop_pages(path: Path) -> None:
    """Drop a file from the page cache, so that its pages are charged to who reads them next."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(path: Path) -> float:
    """Return the bytes per second of sequential reading past the page cache."""
    total = min(DIRECT_BYTES, path.stat().st_size // DIRECT_BLOCK * DIRECT_BLOCK)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, DIRECT_BLOCK) as buffer:
            started = time.perf_counter()
            for offset in range(0, total, DIRECT_BLOCK):
                os.preadv(descriptor, [buffer], offset)
            return total / (time.perf_counter() - started)
    finally:
        os.close(descriptor)


def major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def bytes_read() -> int:
    """Return what this process has had read from disks."""
    return _field("/proc/self/io", "read_bytes:")


def anonymous_bytes() -> int:
    return _field("/proc/self/status", "RssAnon:") * 1024


def _field(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def report(found: dict[str, Any], limit: int | None, model: Path) -> None:
    """Print one run."""
    seconds = statistics.median(found["seconds"])
    rate = found["bytes_read"] * len(found["seconds"]) / sum(found["seconds"])
    disk = found["disk_rate"]
    print(f"{model.name}, {_name(limit)}")
    print(f"  plan             {found['plan']}")
    print(f"  ready, first     {found['ready_seconds']:.3f} s, {found['first_seconds']:.3f} s")
    if limit and found["first_bytes_read"] < model.stat().st_size / 2:
        print("  note             another process holds pages of the file, beyond the limit")
    print(f"  decode           {1 / seconds:.3f} tok/s ({seconds:.3f} s a token)")
    print(f"  major faults     {found['major_faults']:.0f} a token")
    print(f"  read             {found['bytes_read'] / 1e9:.3f} GB a token")
    print(
        f"  disk             {rate / 1e9:.2f} GB/s read, {disk / 1e9:.2f} GB/s sequentially: "
        f"{rate / disk:.0%}; weights {model.stat().st_size / seconds / 1e9:.2f} GB/s: "
        f"{model.stat().st_size / seconds / disk:.0%}"
    )
    above = found["anonymous_bytes"] - found["kv_bytes"]
    print(f"  anonymous        KV {found['kv_bytes'] / 1e6:.0f} MB + {above / 1e6:.0f} MB")


def measure_peer(chosen: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """Run llama-bench: decoding only, its KV cache as ours."""
    drop_pages(chosen.gguf)
    kv = {"int8": "q8_0", "f16": "f16", "f32": "f32"}[chosen.kv]
    command = [
        str(chosen.llama_bench), "-m", str(chosen.gguf), "-p", "0", "-n", str(chosen.steps),
        "-r", "1", "-ctk", kv, "-ctv", kv, "-fa", "1", "-o", "json",
        "-t", str(len(os.sched_getaffinity(0))),
    ]  # fmt: skip
    output, faults = run_limited(command, limit)
    return {"tokens_per_second": json.loads(output)[0]["avg_ts"], "major_faults": faults}


def report_peer(found: dict[str, Any], limit: int | None) -> None:
    """Print one run of the peer, at depth 0."""
    print(f"llama.cpp at depth 0, {_name(limit)}")
    print(f"  decode           {found['tokens_per_second']:.3f} tok/s")
    print(f"  major faults     {found['major_faults']} in all")


def _name(limit: int | None) -> str:
    return f"limit {limit / 1e9:.2f} GB" if limit else "no limit"


if __name__ == "__main__":
    sys.exit(main())
