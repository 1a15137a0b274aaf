"""Measures the linear algebra of calibration beside NumPy's BLAS: billions of operations a second.

Each pair runs in turns, the best of the rounds counts; an operation is a multiplication or an
addition, and only what a triangle needs is counted for x.T @ x and for the factorization. The time
is that of the clock, or with one thread the process's, which neighbours disturb less.

Run it as `python3 tools/bench_linalg.py [--size N] [--rows N]`, with llama2q installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q import _core
from machine import describe_machine
from markdown_table import markdown_table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the triangle")
    parser.add_argument("--rows", type=int, default=512, help="rows that a product sums over")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="measure here, with so many, and print JSON")
    chosen = parser.parse_args(arguments)
    for name in ("size", "rows", "rounds"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}; expected 1 or more")
    if chosen.threads is not None:
        print(json.dumps(measure(chosen.size, chosen.rows, chosen.rounds, chosen.threads)))
        return 0
    rows = [
        row
        for n_threads in sorted({1, _core.default_threads()})
        for row in in_process(n_threads, sys.argv[1:] if arguments is None else arguments)
    ]
    for key, value in describe_machine().items():
        print(f"{key}: {value}")
    print(f"ISA: {_core.default_isa()}; {chosen.size} columns, {chosen.rows} rows\n")
    head = ["what", "threads", "llama2q GFLOPS", "NumPy GFLOPS", "ratio"]
    print(markdown_table(head, [[str(cell) for cell in row.values()] for row in rows]))
    return 0


def in_process(n_threads: int, arguments: list[str]) -> list[dict[str, Any]]:
    """Measure in a process of its own: a BLAS reads its number of threads when it is loaded."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
             "VECLIB_MAXIMUM_THREADS")  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--threads", str(n_threads)],
        env={**os.environ, **dict.fromkeys(names, str(n_threads))},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def measure(size: int, rows: int, rounds: int, n_threads: int) -> list[dict[str, Any]]:
    """Measure the three kernels against what NumPy does in their place."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, size), np.float32)
    y = rng.standard_normal((rows, size), np.float32)
    h = np.zeros((size, size), np.float32)
    gram = x.T @ x + np.float32(rows) * np.eye(size, dtype=np.float32)

    def factor() -> Callable[[], Any]:
        again: NDArray[np.float32] = gram.copy()
        return lambda: _core.ldl(again, n_threads=n_threads)

    pairs: dict[str, tuple[float, Callable[[], Callable[[], Any]], Callable[[], Any]]] = {
        "a.T @ b": (
            2.0 * rows * size**2,
            lambda: lambda: _core.add_product(h, x, y, n_threads=n_threads),
            lambda: x.T @ y,
        ),
        "x.T @ x": (
            1.0 * rows * size**2,
            lambda: lambda: _core.add_gram(h, x, n_threads=n_threads),
            lambda: x.T @ x,
        ),
        "LDL, Cholesky": (size**3 / 3, factor, lambda: np.linalg.cholesky(gram)),
    }
    found = []
    for what, (operations, ours, theirs) in pairs.items():
        times = [(seconds(ours(), n_threads), seconds(theirs, n_threads)) for _ in range(rounds)]
        own, blas = (operations / min(column) / 1e9 for column in zip(*times, strict=True))
        found.append(
            {
                "what": what,
                "threads": n_threads,
                "llama2q": f"{own:.1f}",
                "NumPy": f"{blas:.1f}",
                "ratio": f"{own / blas:.2f}",
            }
        )
    return found


def seconds(call: Callable[[], Any], n_threads: int) -> float:
    """Time one call."""
    clock = time.process_time if n_threads == 1 else time.perf_counter
    started = clock()
    call()
    return max(clock() - started, 1e-9)


if __name__ == "__main__":
    sys.exit(main())
