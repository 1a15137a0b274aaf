"""Measures what this machine can do at most: the denominators of the benchmarks.

Per instruction set, for one core and for all: the rate of int8 dots (operands in registers or
from memory, the best counts) and the rate of reading memory (many access patterns, the best
counts). An operation is a multiplication or an addition.

Run it as `python3 tools/bench_limits.py [--json]`, with llama2q installed; an idle machine gives
the true figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from llama2q import _core
from machine import describe_machine

TIERS = ("avx2", "avxvnni", "avx512vnni")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--bytes", type=int, default=512 << 20, help="memory that is read")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.seconds <= 60:
        parser.error(f"--seconds is {chosen.seconds}; expected more than 0 and at most 60")
    limits = measure(chosen.seconds, chosen.bytes)
    if chosen.json:
        print(json.dumps(limits, indent=2))
    else:
        print(table(limits))
    return 0


def measure(seconds: float, n_bytes: int) -> dict[str, Any]:
    """Measure every tier that this build and CPU have, on one core and on all."""
    n_all = _core.default_threads()
    rows = []
    for isa in _core.isas():
        for n_threads in sorted({1, n_all}):
            dots = _core.measure_dot_rate(isa, n_threads, seconds)
            reads = _core.measure_read_bandwidth(isa, n_threads, n_bytes, seconds)
            way, rate = best(dots)
            pattern, bandwidth = best(reads)
            rows.append(
                {
                    "isa": isa,
                    "n_threads": n_threads,
                    "int8_ops_per_second": rate,
                    "int8_way": way,
                    "read_bytes_per_second": bandwidth,
                    "read_pattern": pattern,
                    "small_pages_bytes_per_second": max(
                        value for name, value in reads.items() if "small pages" in name
                    ),
                }
            )
    return {
        "machine": describe_machine(),
        "rows": rows,
        "left_out": [isa for isa in TIERS if isa not in _core.isas()],
    }


def best(rates: dict[str, float]) -> tuple[str, float]:
    """Return the fastest way and its rate."""
    return max(rates.items(), key=lambda item: item[1])


def table(limits: dict[str, Any]) -> str:
    """Lay the result out as text."""
    lines = [f"{key}: {value}" for key, value in limits["machine"].items()]
    lines += ["", f"{'ISA':<12}{'threads':>8}{'int8 GOPS':>11}{'read GB/s':>11}  how"]
    for row in limits["rows"]:
        lines.append(
            f"{row['isa']:<12}{row['n_threads']:>8}{row['int8_ops_per_second'] / 1e9:>11.1f}"
            f"{row['read_bytes_per_second'] / 1e9:>11.2f}  {row['int8_way']}; {row['read_pattern']}"
        )
    lines += [f"{isa}: not in this CPU or build" for isa in limits["left_out"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
