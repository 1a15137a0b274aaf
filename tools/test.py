"""Runs every check of the project: style, types, warnings, tests.

Run it as `python3 tools/test.py`; `--all` also runs the tests that are marked slow, a second
compiler, the sanitizers, the CUDA kernels of every architecture, cross builds for macOS and
Windows, and Windows programs under wine. It needs Python 3.11 or newer and a C++20 compiler
(`--all`: g++, a recent clang with libc++, and wine64), and fails if any check fails. Without nvcc
it leaves the CUDA kernels out and says so.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import check_cuda
import cross_checks
import native_build
import native_checks
import own_venv
import wheel_checks

ROOT = own_venv.ROOT
BIN = own_venv.PYTHON.parent
WERROR_BUILD = ROOT / "build" / "werror"
TEST_LIBRARIES = sys.platform == "linux"
"""The installation has what stands in for CUDA; it is compiled with warnings as errors."""
CUDA_STEP = "CUDA kernels within their budget"
FAULTS = "tests/test_teeth.py"
NO_TESTS = 5
"""pytest's exit code when it finds none."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also run the tests marked slow")
    parser.add_argument(
        "--steps",
        type=re.compile,
        metavar="REGEX",
        help="run only the steps in whose names it is found: some of them again, or side by side",
    )
    arguments = parser.parse_args()
    run_all = bool(arguments.all)
    own_venv.ensure(
        extras=("test", "cross") if run_all else ("test",), test_libraries=TEST_LIBRARIES
    )
    steps: list[tuple[str, Callable[[], int]]] = [
        ("ruff check", lambda: tool("ruff", "check", ".")),
        ("ruff format", lambda: tool("ruff", "format", "--check", ".")),
        ("clang-format", clang_format),
        ("mypy --strict", lambda: tool("mypy")),
        *([] if TEST_LIBRARIES else [("C++ warnings are errors", build_werror)]),
        ("ISA units leak nothing", isa_units),
        ("pytest", lambda: pytest(run_all, f"--ignore={FAULTS}")),
        ("injected faults", lambda: pytest(run_all, FAULTS)),
    ]
    no_cuda = native_build.nvcc_missing()
    architectures = check_cuda.ARCHITECTURES if run_all else check_cuda.FEW
    if no_cuda is None:
        steps.append((CUDA_STEP, lambda: check_cuda.check(architectures)))
    slow_steps = [*native_checks.steps(), *cross_checks.steps(), *wheel_checks.steps()]
    if run_all:
        steps += slow_steps
    if arguments.steps is not None:
        for name, _ in steps:
            if not arguments.steps.search(name):
                print(f"left out by --steps: {name}")
        steps = [(name, step) for name, step in steps if arguments.steps.search(name)]
    results = []
    for name, step in steps:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        try:
            code = step()
        except SystemExit as error:  # what it needs is missing
            print(error, file=sys.stderr)
            code = 1
        results.append((name, code, time.monotonic() - started))
    print("\n== summary")
    for name, code, seconds in results:
        print(f"{'ok' if code == 0 else 'FAILED':<7} {name} ({seconds:.0f} s)")
    if no_cuda is not None:
        print(f"left out, also by --all: {CUDA_STEP}: {no_cuda}")
    if not run_all:
        if no_cuda is None:
            names = ", ".join(f"sm_{a}" for a in check_cuda.ARCHITECTURES if a not in architectures)
            print(f"left out, run by --all: {CUDA_STEP} on {names}")
        for name, _ in slow_steps:
            print(f"left out, run by --all: {name}")
        print_left_out()
    return int(any(code for _, code, _ in results))


def tool(name: str, *arguments: str | Path) -> int:
    """Run a program of the environment."""
    return native_build.run([BIN / name, *arguments])


def clang_format() -> int:
    """Check the form of all C++ text."""
    files = sorted(
        path
        for suffix in ("*.h", "*.cpp", "*.cu", "*.cuh")
        for folder in ("csrc", "tests/cross/os", "tests/cuda", "tools/cuda")
        for path in (ROOT / folder).rglob(suffix)
    )
    return tool("clang-format", "--dry-run", "--Werror", *files)


def build_werror() -> int:
    """Compile the core with warnings as errors."""
    return native_build.build(WERROR_BUILD, "-DLLAMA2Q_WERROR=ON")


def isa_units() -> int:
    """Read the symbols of the units that were compiled."""
    build = ROOT / own_venv.TESTS_BUILD if TEST_LIBRARIES else WERROR_BUILD
    return native_build.run([own_venv.PYTHON, ROOT / "tools" / "check_isa_units.py", build])


def pytest(run_all: bool, *arguments: str) -> int:
    """Run tests."""
    chosen = [] if run_all else ["-m", "not slow"]
    return native_build.run([own_venv.PYTHON, "-m", "pytest", "-q", *chosen, *arguments])


def print_left_out() -> None:
    """Name the tests that only --all runs."""
    result = subprocess.run(
        [str(own_venv.PYTHON), "-m", "pytest", "-q", "--collect-only", "-m", "slow"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode not in (0, NO_TESTS):
        print("left out: unknown, since pytest could not list the slow tests")
        return
    names = [line.split("[")[0] for line in result.stdout.splitlines() if "::" in line]
    if not names:
        print("left out: nothing")
    for name, count in Counter(names).items():
        cases = f" ({count} cases)" if count > 1 else ""
        print(f"left out, run by --all: {name}{cases}")


if __name__ == "__main__":
    sys.exit(main())
