"""Measures conversions against a cold copy of the same files.

    python3 tools/bench_convert.py DIR --setting method=rtn --setting quant=int8,group_size=32

Per round it reads the files, copies them with `dd bs=16M conv=fsync`, and converts them once per
setting, each time after the system has dropped the files from memory. A setting names arguments of
`llama2q.convert`. Every conversion is a process of its own: wall time, CPU time and peak resident
size are that process's, with its start; memory is foreseen without it. Copies and outputs are
removed at once; the disk needs room for one of them beside the checkpoint. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama2q
from llama2q.errors import Llama2qError
from machine import describe_machine
from markdown_table import markdown_table

_CONVERT = """
import json, resource, sys, llama2q
report = llama2q.convert(*sys.argv[1:3], **json.loads(sys.argv[3]))
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "cpu": usage.ru_utime + usage.ru_stime,
    "peak": report.peak_rss_bytes,
    "bytes": report.output_bytes,
}))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: seconds of wall and CPU time, bytes; 0 where that means nothing."""

    seconds: float
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    output_bytes: int = 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint")
    parser.add_argument(
        "--setting", action="append", type=parse_setting, metavar="NAME=VALUE,...",
        help="arguments of llama2q.convert; may be repeated; default: method=rtn",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1, help="of which medians are printed")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where copies and outputs go")
    parser.add_argument("--no-copy", action="store_true", help="convert only")
    chosen = parser.parse_args(arguments)
    settings: list[dict[str, Any]] = chosen.setting or [{"method": "rtn"}]
    try:
        with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
            measure(chosen.folder, settings, chosen.rounds, Path(scratch), copy=not chosen.no_copy)
    except (Llama2qError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench_convert: {error}", file=sys.stderr)
        return 1
    return 0


def parse_setting(text: str) -> dict[str, Any]:
    """Read "quant=int4,group_size=32"; numbers become numbers."""
    setting: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=VALUE")
        setting[name] = int(value) if value.isdecimal() else value
    return setting


def measure(
    folder: Path, settings: Sequence[dict[str, Any]], rounds: int, scratch: Path, *, copy: bool
) -> None:
    """Print a table of medians."""
    output = scratch / "out.l2q"
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    plans = [llama2q.plan_conversion(folder, output, **setting) for setting in settings]
    needed = max(n_bytes if copy else 0, *(plan.output_bytes for plan in plans))
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed in {scratch}, {free / 1e9:.1f} are free")
    tasks: dict[str, Callable[[], Run]] = {}
    if copy:
        tasks["reading"] = lambda: read_all(files)
        tasks["copy"] = lambda: copy_all(files, scratch)
    for setting in settings:
        name = ", ".join(f"{key} {value}" for key, value in setting.items())
        tasks[name] = lambda setting=setting: convert(folder, output, setting)  # type: ignore[misc]
    runs: dict[str, list[Run]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            drop_from_memory(files)
            runs[name].append(task())
    print("; ".join(f"{key}: {value}" for key, value in describe_machine().items()))
    print(f"{n_bytes / 1e9:.2f} GB in {len(files)} files; medians of {rounds}\n")
    foreseen = dict(zip(list(tasks)[-len(plans) :], plans, strict=True))
    copied = statistics.median(run.seconds for run in runs["copy"]) if copy else None
    rows = [row(name, found, copied, foreseen.get(name)) for name, found in runs.items()]
    head = ["task", "s", "of the copy", "CPU s", "peak RSS, MB", "output, GB", "foreseen: s, MB"]
    print(markdown_table(head, rows))


def row(
    name: str, runs: Sequence[Run], copied: float | None, plan: llama2q.ConversionPlan | None
) -> list[str]:
    """Format the medians of one task."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    seconds = median([run.seconds for run in runs])
    cells = [name, f"{seconds:.1f}", "" if copied is None else f"{seconds / copied:.2f}"]
    if plan is None:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{median([run.cpu_seconds for run in runs]):.1f}",
        f"{median([run.peak_bytes for run in runs]) / 1e6:.0f}",
        f"{runs[0].output_bytes / 1e9:.2f}",
        f"{plan.seconds:.1f}, {plan.memory_bytes / 1e6:.0f}",
    ]


def drop_from_memory(files: Sequence[Path]) -> None:
    """Have the system forget the files' pages, so that the next task reads them from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(files: Sequence[Path]) -> Run:
    """Read every file once: what no conversion can be faster than."""
    return timed(lambda: dd((path, Path(os.devnull)) for path in files))


def copy_all(files: Sequence[Path], scratch: Path) -> Run:
    """Copy every file to the disk, and remove the copies."""
    copies = scratch / "copy"
    copies.mkdir()
    try:
        return timed(lambda: dd(((path, copies / path.name) for path in files), "conv=fsync"))
    finally:
        shutil.rmtree(copies)


def dd(copies: Iterable[tuple[Path, Path]], *options: str) -> None:
    for source, target in copies:
        command = ["dd", f"if={source}", f"of={target}", "bs=16M", "status=none", *options]
        subprocess.run(command, check=True)


def convert(folder: Path, output: Path, setting: dict[str, Any]) -> Run:
    """Convert in a process of its own, and remove the output."""
    command = [sys.executable, "-c", _CONVERT, str(folder), str(output), json.dumps(setting)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    seconds = time.perf_counter() - start
    output.unlink()
    values = json.loads(done.stdout)
    return Run(seconds, values["cpu"], values["peak"], values["bytes"])


def timed(run: Callable[[], object]) -> Run:
    start = time.perf_counter()
    run()
    return Run(time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
