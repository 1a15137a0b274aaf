"""Measures the CUDA backend on a machine with a GPU, in one call of a few minutes.

    python3 tools/bench_cuda.py --out OUT [--parts a,b,c] [--llama-cpp ARCHIVE] [--commit NAME]

It builds the package for the device that is there, makes its models, and writes
`results.jsonl` as it goes and `report.md` after each part, so that a run that is cut short is
not lost. A part that fails says so and the rest goes on. Without a GPU, or with --dry-run,
everything runs in tiny sizes on the emulation of tests/cuda: logic only.

nvcc 13, cmake, ninja, a C++20 compiler, and for Python: numpy, psutil, pybind11, pytest with
pytest-timeout, hypothesis, rich, sentencepiece, typer. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import cuda_bench_build
import cuda_bench_checks
import cuda_bench_measure
import cuda_bench_peer
import cuda_bench_report
from cuda_bench_run import Context, Part, Recorder, Settings, run_part, stop

DEADLINE, DRY_DEADLINE = 530.0, 1e6
SHAPES = ("7b", "13b", "70b", "tiny")


def build(context: Context) -> None:
    """Build, and begin what runs beside the parts that follow."""
    cuda_bench_build.build(context)
    context.recorder.log("build", "the package is there")
    cuda_bench_measure.start_models(context)
    cuda_bench_peer.start_build(context)


_BOTH = ("package", "programs")
PARTS = (
    Part("a", "facts", 5, 30, cuda_bench_build.facts),
    Part("b", "build", 90, 240, build),
    Part("c", "check", 45, 90, cuda_bench_checks.check, ("package",)),
    Part("d", "limits", 12, 40, cuda_bench_measure.limits, ("programs",)),
    Part("e", "kernels", 75, 120, cuda_bench_measure.kernels, ("programs",)),
    Part("w", "wait", 10, 150, cuda_bench_measure.wait),
    Part("f", "speed", 90, 150, cuda_bench_measure.speed, ("package",)),
    Part("g", "split", 110, 180, cuda_bench_measure.split, ("package",)),
    Part("h", "llama.cpp", 60, 240, cuda_bench_peer.peer, ("package",)),
    Part("i", "profile", 15, 60, cuda_bench_measure.profile, ("programs",)),
    Part("s", "sanitize", 60, 120, cuda_bench_checks.sanitize, _BOTH),
)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    keys = [key for key in chosen.parts.split(",") if key]
    parts = [part for part in PARTS if part.key in keys]
    if chosen.plan:
        print(plan(parts, with_peer=chosen.llama_cpp is not None))
        return 0
    if chosen.pack_llama_cpp is not None:
        size = cuda_bench_peer.pack(chosen.pack_llama_cpp, chosen.out)
        print(f"{chosen.out}: {size / 1e6:.1f} MB")
        return 0
    dry = chosen.dry_run or not cuda_bench_build.has_gpu()
    if dry and not chosen.dry_run:
        print("bench_cuda: no GPU is there: a dry run on the emulation", file=sys.stderr)
    work = chosen.work or Path(tempfile.gettempdir()) / "llama2q-bench"
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        out=chosen.out,
        work=work.resolve(),
        parts=tuple(keys),
        shapes=("tiny",) if dry else tuple(chosen.shapes.split(",")),
        dry=dry,
        built=chosen.built.resolve() if chosen.built else None,
        installed=chosen.installed,
        llama_cpp=chosen.llama_cpp.resolve() if chosen.llama_cpp else None,
        profile=chosen.profile,
        deadline=DRY_DEADLINE if dry and chosen.deadline == DEADLINE else chosen.deadline,
        commit=chosen.commit,
    )
    context = Context(settings, Recorder(settings.out))
    if "b" not in keys:  # the parts need it, whatever was asked for
        parts = sorted([*parts, *(p for p in PARTS if p.key == "b")], key=PARTS.index)
    try:
        for part in parts:
            print(f"bench_cuda: {part.name} ({context.left():.0f} s left)", flush=True)
            run_part(context, part)
            cuda_bench_report.write(context)
    finally:
        stop(context)
        context.recorder.log("end", f"{context.left():.0f} s left")
        if not chosen.keep:
            shutil.rmtree(cuda_bench_measure.files_folder(context), ignore_errors=True)
        context.recorder.close()
    print(cuda_bench_report.summary(context))
    rows = context.recorder.rows
    failed = [row for row in rows if "error" in row or row.get("outcome") in ("failed", "error")]
    return int(bool(failed))


def plan(parts: list[Part], *, with_peer: bool) -> str:
    """Say what would run, and for how long."""
    lines = [f"{'part':<12}{'estimate, s':>12}{'at most, s':>12}"]
    total = 0.0
    for part in parts:
        idle = (part.key == "h" and not with_peer) or part.key == "i"
        estimate = 0.0 if idle else part.estimate
        total += estimate
        lines.append(f"{part.key} {part.name:<10}{estimate:>12.0f}{part.budget:>12.0f}")
    lines.append(f"{'together':<12}{total:>12.0f}{DEADLINE:>12.0f}")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    letters = ",".join(part.key for part in PARTS)
    names = ", ".join(f"{part.key} {part.name}" for part in PARTS)
    parser.add_argument("--out", type=Path, default=Path("bench-cuda"), help="folder of results")
    parser.add_argument("--parts", default=letters, help=names)
    parser.add_argument("--shapes", default="7b,13b,70b", help="models")
    parser.add_argument("--plan", action="store_true", help="say what takes how long, and stop")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the emulation")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for all of it")
    parser.add_argument("--work", type=Path, help="folder of builds and models")
    parser.add_argument("--keep", action="store_true", help="leave the models where they are")
    package = parser.add_mutually_exclusive_group()
    package.add_argument("--installed", action="store_true", help="take the installed package")
    package.add_argument("--built", type=Path, help="a finished build folder to take")
    parser.add_argument("--llama-cpp", type=Path, help="its source: a folder or an archive")
    parser.add_argument("--profile", metavar="OP[:TOKENS]", help="profile a kernel with ncu")
    parser.add_argument("--commit", default="", help="what is measured, where git cannot say")
    parser.add_argument(
        "--pack-llama-cpp", type=Path, metavar="FOLDER",
        help="put what is needed of this source into the archive --out, and stop",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.parts.split(",")) - {part.key for part in PARTS} - {""}
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; the parts are {names}")
    strange = set(chosen.shapes.split(",")) - set(SHAPES)
    if strange:
        parser.error(f"no shape {', '.join(sorted(strange))}; expected {', '.join(SHAPES)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
