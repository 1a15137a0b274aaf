"""Programs that check CUDA's kernels under the emulation, built by CMake from tests/cuda."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parent / "cuda"
_CSRC = CUDA.parents[1] / "csrc" / "cuda"
_LIMIT_S = 560

MARKS = [
    pytest.mark.skipif(sys.platform != "linux", reason="the emulation reads ELF files"),
    pytest.mark.skipif(not _CSRC.is_dir(), reason="the sources are not beside the tests"),
]
SANITIZED = ("-DLLAMA2Q_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


def checks_of(name: str) -> list[str]:
    """Return the checks that the program of tests/cuda/NAME has."""
    main = CUDA / name / "main.cpp"
    if not main.is_file():
        return []
    return re.findall(r'\{"(\w+)", check_\w+\}', main.read_text(encoding="utf-8"))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # cmake and ninja may be installed beside Python and nowhere else.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip


def build(name: str, folder: Path, *options: str) -> None:
    """Build tests/cuda/NAME, warnings as errors."""
    for command in (
        ("cmake", "-S", CUDA / name, "-B", folder, "-G", "Ninja", "-DLLAMA2Q_WERROR=ON", *options),
        ("cmake", "--build", folder, "--parallel", "2"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def expect_check(program: Path, check: str, **environment: str) -> None:
    """Run one check, which must succeed."""
    done = run(program, check, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"ok {check}", "1 run, 0 failed"]
