"""The project's own virtual environment, for tools that start with nothing but Python."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TESTS_BUILD = Path("build", f"tests-{sys.implementation.cache_tag}")
"""Where, below the project, the installation with the tests' libraries is compiled."""
_STAMP = VENV / "llama2q-installed.json"
_BUILD_PROGRAMS = ("cmake>=3.18", "ninja")
_SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "csrc", "src")
_TEST_LIBRARIES = ("tests/cuda",)


def is_inside() -> bool:
    """Whether this Python is that of the environment."""
    return Path(sys.prefix).resolve() == VENV


def ensure(*, extras: Sequence[str] = (), test_libraries: bool = False) -> None:
    """Make the environment and install the project, if it is not there or has changed.

    What builds the project is installed too, so that only changed C++ files are compiled again.

    Parameters
    ----------
    extras : sequence of str
        Optional dependencies of the project.
    test_libraries : bool
        Put the libraries that stand in for CUDA's beside the package, for tests, and take compiler
        warnings for errors. An installation that has them does for callers that do not ask.

    Raises
    ------
    SystemExit
        If it cannot be made; what went wrong is on stderr.
    """
    if not _works():
        _create()
    stamp = {
        "sources": _hash_of(_SOURCES),
        "extras": list(extras),
        "test_libraries": _hash_of(_TEST_LIBRARIES) if test_libraries else None,
    }
    if _is_installed(stamp):
        return
    _STAMP.unlink(missing_ok=True)
    project = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    what = "the C++ core and the tests' libraries" if test_libraries else "the C++ core"
    print(f"installing llama2q into .venv (compiles {what}: some minutes)", flush=True)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    _pip_install(*pyproject["build-system"]["requires"], *_BUILD_PROGRAMS)
    # A build folder of its own: what CMake was told once, it is told again in later builds there.
    settings = (
        f"build-dir={TESTS_BUILD.as_posix()}",
        "cmake.define.LLAMA2Q_TEST_LIBRARIES=ON",
        "cmake.define.LLAMA2Q_WERROR=ON",
    )
    options = [f"--config-settings={setting}" for setting in settings if test_libraries]
    _pip_install("--no-build-isolation", *options, project)
    _STAMP.write_text(json.dumps(stamp), encoding="utf-8")


def _works() -> bool:
    """Whether the environment exists and its Python runs."""
    try:
        probe = subprocess.run(
            [str(PYTHON), "-c", "import pip"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def _create() -> None:
    if VENV.exists():
        print("rebuilding .venv, which does not work any more", flush=True)
        shutil.rmtree(VENV)
    else:
        print("creating .venv", flush=True)
    _run(
        [sys.executable, "-m", "venv", str(VENV)],
        "Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv",
    )


def _pip_install(*arguments: str) -> None:
    """Install into the environment, with its programs (cmake, ninja) on the PATH."""
    _run(
        [
            *(str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *arguments,
        ],
        "the installation failed; a C++20 compiler (g++ 11 or newer, or clang++) and access to "
        "PyPI are needed",
    )


def _run(command: Sequence[str], hint: str) -> None:
    """Run a command; show its output only if it fails."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        check=False,
    )
    if result.returncode:
        print(result.stdout + result.stderr, file=sys.stderr)
        raise SystemExit(hint)


def _is_installed(wanted: Mapping[str, Any]) -> bool:
    """Whether these sources are installed, with at least these extras and libraries."""
    try:
        stamp = json.loads(_STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        stamp["sources"] == wanted["sources"]
        and set(wanted["extras"]) <= set(stamp["extras"])
        and wanted["test_libraries"] in (None, stamp.get("test_libraries"))
    )


def _hash_of(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in _files(ROOT / name for name in names):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(roots: Iterable[Path]) -> list[Path]:
    """List all files below the roots, without compiled Python and without tests."""
    found: list[Path] = []
    for root in roots:
        found += [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
        found += [root] if root.is_file() else []
    return sorted(
        path
        for path in found
        if path.suffix not in (".pyc", ".so") and not path.name.startswith("test_")
    )
