"""Builds the sdist and, from it, a wheel for Linux x86-64 that needs no newer glibc than 2.28.

Run it as `python3 tools/build_wheel.py`; both files come into dist/. The compiler is clang with
libc++ from the `ziglang` package, which links against any glibc; auditwheel tags and strips the
wheel, and `tools/check_wheel.py` reads it. A wheel is for the Python that runs this. Where nvcc 13
is, the wheel gets the library of CUDA kernels, for whose host code nvcc needs g++; no other
compiler is needed, but the binutils are.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import check_wheel
import native_build
import own_venv
import python_headers

BUILD = own_venv.ROOT / "build" / "wheel"
GLIBC = "2.28"
TARGET = f"x86_64-linux-gnu.{GLIBC}"
PLATFORM = f"manylinux_{GLIBC.replace('.', '_')}_x86_64"
_ENVIRONMENT = BUILD / f"tools-{sys.implementation.cache_tag}"
PYTHON = _ENVIRONMENT / "bin" / "python"
"""Python of an environment with the extra "wheel" and without the project."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=own_venv.ROOT / "dist", help="default: dist/")
    parser.add_argument("--without-cuda", action="store_true", help="leave the CUDA kernels out")
    arguments = parser.parse_args()
    return build(arguments.out.resolve(), without_cuda=arguments.without_cuda)


def build(out: Path, *, without_cuda: bool = False) -> int:
    """Build sdist and wheel into a folder, alone there, and check them; return an exit code."""
    if missing := [name for name in ("objdump", "readelf", "strip") if not shutil.which(name)]:
        print(f"missing: {', '.join(missing)}; on Debian: apt install binutils", file=sys.stderr)
        return 1
    reason = "--without-cuda" if without_cuda else cuda_missing()
    print(f"without CUDA kernels: {reason}" if reason else "with CUDA kernels", flush=True)
    if failed := ensure_tools():
        return failed
    raw = BUILD / "raw"
    for folder in (raw, out):
        for old in [*folder.glob("llama2q-*.whl"), *folder.glob("llama2q-*.tar.gz")]:
            old.unlink()
    if failed := _build_raw(raw, with_cuda=reason is None):
        return failed
    (sdist,), (raw_wheel,) = raw.glob("*.tar.gz"), raw.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy2(sdist, out)
    # Its functions still have names: after this the wheel is stripped.
    code = check_wheel.report(sdist, check_wheel.sdist_faults)
    code = check_wheel.report(raw_wheel, check_wheel.instruction_faults) or code
    code = _repair(raw_wheel, out) or code
    if code == 0 and check_wheel.has_cuda(wheel_in(out)) != (reason is None):
        print(f"{check_wheel.CUDA_LIBRARY}: {'missing' if reason is None else 'there'}")
        return 1
    return code or check_wheel.report(wheel_in(out), check_wheel.faults_of)


def cuda_missing() -> str | None:
    """Return why a wheel built here has no CUDA kernels; None if it has them."""
    if missing := native_build.nvcc_missing():
        return missing
    return None if shutil.which("g++") else "nvcc needs g++, which is not on the PATH"


def wheel_in(folder: Path) -> Path:
    """Return the wheel that was built into a folder.

    Raises
    ------
    SystemExit
        If it holds none or several.
    """
    wheels = sorted(folder.glob("llama2q-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{folder} holds {len(wheels)} wheels; run tools/build_wheel.py first")
    return wheels[0]


def ensure_tools() -> int:
    """Make the environment of PYTHON if it is not there or has changed; return an exit code."""
    pyproject = tomllib.loads((own_venv.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needs: list[str] = [
        *pyproject["build-system"]["requires"],
        *pyproject["project"]["optional-dependencies"]["wheel"],
    ]
    stamp = _ENVIRONMENT / "needs.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == needs:
        return 0
    print(f"installing what builds wheels into {_ENVIRONMENT.relative_to(own_venv.ROOT)}")
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    failed = native_build.run([sys.executable, "-m", "venv", "--clear", _ENVIRONMENT])
    failed = failed or native_build.run([*pip, *needs])
    if not failed:
        stamp.write_text(json.dumps(needs), encoding="utf-8")
    return failed


def tools_environment() -> Mapping[str, str]:
    """Return environment variables with the environment's programs on the PATH."""
    return {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _build_raw(folder: Path, *, with_cuda: bool) -> int:
    """Build the sdist and from it a wheel with all symbols, tagged for this machine."""
    n_jobs = str(len(os.sched_getaffinity(0)))
    defines = {"LLAMA2Q_WERROR": "ON"}
    if with_cuda:
        # Any that offers what the objects need will do: check_wheel reads which versions that are.
        libraries = [
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libstdc++.so.6", "libgcc_s.so.1")
        ]
        defines |= {
            "LLAMA2Q_CUDA": "ON",
            "CMAKE_CUDA_HOST_COMPILER": "g++",
            "LLAMA2Q_CUDA_HOST_LIBRARIES": ";".join(libraries),
        }
    # Without --sdist or --wheel, `build` makes the wheel from the sdist.
    return native_build.run(
        [
            *(PYTHON, "-m", "build", "--no-isolation", "--outdir", folder),
            *(f"-Ccmake.define.{name}={value}" for name, value in defines.items()),
            *("-Cinstall.strip=false", own_venv.ROOT),
        ],
        {**tools_environment(), "CXX": str(_compiler()), "CMAKE_BUILD_PARALLEL_LEVEL": n_jobs},
    )


def _compiler() -> Path:
    """Write the program that CMake calls as the C++ compiler."""
    program = BUILD / "zig-c++"
    headers = python_headers.platform_folder(BUILD)
    command = [str(PYTHON), "-m", "ziglang", "c++", "-target", TARGET, "-isystem", str(headers)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def _repair(wheel: Path, out: Path) -> int:
    """Let auditwheel check what the wheel needs of the system, tag it and strip it."""
    return native_build.run(
        [
            *(PYTHON.with_name("auditwheel"), "repair", "--strip"),
            *("--plat", PLATFORM, "--wheel-dir", out, wheel),
        ],
        tools_environment(),
    )


if __name__ == "__main__":
    sys.exit(main())
