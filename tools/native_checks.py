"""What only `tools/test.py --all` runs on the C++ text: a second compiler, sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import native_build
import own_venv

BUILD = own_venv.ROOT / "build"

_SUBJECTS = {
    "address,undefined": (
        *("tests/kernels", "tests/engine", "tests/quant", "tests/bindings"),
        # With sanitizers in the libraries that stand in for CUDA's, too. The kernels' own checks
        # are programs with sanitizers, which pytest builds: tests marked slow.
        "tests/cuda/test_stand_in.py",
        "tests/cuda/test_emulated_steps.py",
    ),
    "thread": (
        "tests/engine/test_concurrent_steps.py",
        "tests/engine/test_bitwise.py",
        "tests/engine/test_step_checks.py",
        "tests/test_read_ahead.py",
        "tests/kernels/test_matmul.py",
        "tests/quant/test_core_quantizers.py",
    ),
}
_LARGE = (
    # Large matrices and long texts, for the length of their sums: minutes, and no new code in them.
    "tests/kernels/test_matmul.py::test_long_rows",
    "tests/engine/test_bitwise.py::test_isas_at_long_positions",
    "tests/engine/test_bitwise.py::test_chunks_at_long_positions",
)
_LEFT_OUT = {
    "address,undefined": (
        *_LARGE,
        # Whole models beside NumPy's: minutes, and what they call, the other tests call too.
        "tests/engine/test_reference.py",
        "tests/engine/test_quality.py",
        "tests/engine/test_float_environment.py::test_sampled_text_of_whole_processes",
    ),
    "thread": (
        *_LARGE,
        # The sanitizer knows no threads after a fork.
        "tests/test_read_ahead.py::test_a_forked_child_goes_on",
    ),
}
_OPTIONS = {
    # Leaks are not looked for: the interpreter itself keeps memory until the process ends. The fuzz
    # target of the core, which has no interpreter, looks for them.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    # No suppressions: Python and NumPy are not instrumented, and their locks are seen. Those of
    # NumPy's BLAS, which spins, are not: it gets one thread.
    "TSAN_OPTIONS": "halt_on_error=1",
    "OPENBLAS_NUM_THREADS": "1",
}


def steps() -> list[tuple[str, Callable[[], int]]]:
    """Return the name and the function of each check; a function returns an exit code."""
    return [
        ("C++ warnings are errors, clang with libc++", clang_warnings),
        ("address and undefined sanitizers", lambda: sanitized("address,undefined")),
        ("thread sanitizer", lambda: sanitized("thread")),
    ]


def clang_warnings() -> int:
    """Compile the core with clang and libc++, warnings as errors."""
    clang = native_build.find_clang()
    if clang is None:
        return 1
    return native_build.build(
        BUILD / "clang-libcxx",
        f"-DCMAKE_CXX_COMPILER={clang}",
        "-DCMAKE_CXX_FLAGS=-stdlib=libc++",
        "-DLLAMA2Q_WERROR=ON",
    )


def sanitized(kind: str) -> int:
    """Build the core with sanitizers and run tests of the kernels and of the step on it.

    Parameters
    ----------
    kind : {"address,undefined", "thread"}
        What -fsanitize= gets.

    Returns
    -------
    int
        An exit code; 0 if nothing was found.
    """
    if sys.platform != "linux" or shutil.which("g++") is None:
        print("this check needs g++ on Linux (its sanitizers are preloaded)", file=sys.stderr)
        return 1
    folder = BUILD / f"sanitize-{kind.partition(',')[0]}"
    failed = native_build.build(
        folder,
        "-DCMAKE_CXX_COMPILER=g++",
        f"-DLLAMA2Q_SANITIZE={kind}",
        f"-DLLAMA2Q_TEST_LIBRARIES={'OFF' if kind == 'thread' else 'ON'}",
        *native_build.avxvnni_options(),
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )
    if failed:
        return failed
    package = native_build.package_of(folder)
    env = {
        **os.environ,
        **_OPTIONS,
        "LD_PRELOAD": _runtimes("libtsan.so" if kind == "thread" else "libasan.so"),
        "PYTHONPATH": str(package),
        "PYTHONMALLOC": "malloc",  # so that each object of Python is an allocation of its own
    }
    # TSan of g++ 12 maps its shadow at fixed places, which randomized addresses may already hold.
    prefix = ["setarch", "-R"] if kind == "thread" else []
    python: list[str | Path] = [*prefix, own_venv.PYTHON]
    probe = f"import llama2q._core as c; assert c.__file__.startswith({str(package)!r}), c.__file__"
    return native_build.run([*python, "-c", probe], env) or native_build.run(
        [
            *(*python, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"),
            *_SUBJECTS[kind],
            *(f"--deselect={test}" for test in _LEFT_OUT[kind]),
        ],
        env,
    )


def _runtimes(sanitizer: str) -> str:
    """Return LD_PRELOAD's value: the sanitizer first, then the C++ library whose throw it wraps."""
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (sanitizer, "libstdc++.so")
    ]
    return " ".join(str(Path(path).resolve()) for path in found)
