"""Builds of the C++ core in build/, for tools: the compilers, CMake, a package around a build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import own_venv

ROOT = own_venv.ROOT
BIN = own_venv.PYTHON.parent
CLANG_PACKAGES = "clang-19 libclang-rt-19-dev libc++-19-dev libc++abi-19-dev"
"""Debian's names of what the checks with clang need."""
_OLDEST_CLANG = 16
_OLDEST_NVCC = 13


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
    """Run a command in the project's root and return its exit code."""
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=False
    ).returncode


def build(folder: Path, *options: str, target: str = "all") -> int:
    """Configure and build the project with these CMake options; return the exit code."""
    cmake_dir = subprocess.run(
        [str(own_venv.PYTHON), "-m", "pybind11", "--cmakedir"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return run(
        [
            *(BIN / "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={BIN / 'ninja'}",
            f"-DPython_EXECUTABLE={own_venv.PYTHON}",
            f"-Dpybind11_DIR={cmake_dir}",
            *options,
        ]
    ) or run([BIN / "cmake", "--build", folder, "--target", target])


def avxvnni_options() -> tuple[str, ...]:
    """Return what lets a CPU with AVX-512 VNNI alone run the avxvnni unit, for checks of it."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ()
    if "avx512_vnni" in words and "avx_vnni" not in words:
        return ("-DLLAMA2Q_AVXVNNI_AS_AVX512=ON",)
    return ()


def package_of(folder: Path) -> Path:
    """Put the Python sources around a build's extension; return what PYTHONPATH needs."""
    target = folder / "python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        ROOT / "src" / "llama2q",
        target / "llama2q",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    (extension,) = folder.glob("_core*.so")
    for library in (extension, *folder.glob("tests/cuda/libllama2q_*.so")):
        shutil.copy2(library, target / "llama2q")
    return target


def nvcc_missing() -> str | None:
    """Return why CUDA kernels cannot be compiled; None if nvcc is there and new enough."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        return "nvcc is not on the PATH"
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvcc does not run ({error})"
    found = re.search(r"release (\d+)\.(\d+)", said.stdout)
    if found is None or int(found[1]) < _OLDEST_NVCC:
        version = found[0] if found else "of an unknown release"
        return f"nvcc {version} is too old; {_OLDEST_NVCC} or newer is needed"
    return None


def find_clang() -> str | None:
    """Return the newest clang++ that is recent enough; print what is missing if there is none."""
    for version in range(_OLDEST_CLANG + 14, _OLDEST_CLANG - 1, -1):
        if shutil.which(f"clang++-{version}"):
            return f"clang++-{version}"
    if shutil.which("clang++"):
        dumped = subprocess.run(
            ["clang++", "-dumpversion"], capture_output=True, text=True, check=False
        ).stdout
        if int(dumped.partition(".")[0] or 0) >= _OLDEST_CLANG:
            return "clang++"
    print(
        f"clang++ {_OLDEST_CLANG} or newer is missing; on Debian: apt install {CLANG_PACKAGES}",
        file=sys.stderr,
    )
    return None
