"""Builds the sdist and, from it, a wheel for Linux x86-64 that needs no newer glibc than 2.28.

Run it as `python3 tools/build_wheel.py`; both files come into dist/. The compiler is clang with
libc++ inside the `ziglang` package, which links against any glibc; auditwheel tags and strips the
wheel, and `tools/check_wheel.py` reads it. A wheel is for the Python that runs this.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

import check_wheel
import native_build
import own_venv

BUILD = own_venv.ROOT / "build" / "wheel"
GLIBC = "2.28"
TARGET = f"x86_64-linux-gnu.{GLIBC}"
PLATFORM = f"manylinux_{GLIBC.replace('.', '_')}_x86_64"
EXTRAS = ("test", "wheel")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=own_venv.ROOT / "dist", help="default: dist/")
    out = parser.parse_args().out.resolve()
    own_venv.ensure(extras=EXTRAS)
    return build(out)


def build(out: Path) -> int:
    """Build sdist and wheel into a folder, alone there, and check them; return an exit code."""
    if missing := [name for name in ("objdump", "readelf", "strip") if not shutil.which(name)]:
        print(f"missing: {', '.join(missing)}; on Debian: apt install binutils", file=sys.stderr)
        return 1
    raw = BUILD / "raw"
    for folder in (raw, out):
        for old in [*folder.glob("llama2q-*.whl"), *folder.glob("llama2q-*.tar.gz")]:
            old.unlink()
    failed = _build_raw(raw)
    if failed:
        return failed
    (sdist,), (raw_wheel,) = raw.glob("*.tar.gz"), raw.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy2(sdist, out)
    # Its functions still have names: after this the wheel is stripped.
    code = check_wheel.report(raw_wheel, check_wheel.instruction_faults)
    code = _repair(raw_wheel, out) or code
    return code or check_wheel.report(wheel_in(out), check_wheel.faults_of)


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


def _build_raw(folder: Path) -> int:
    """Build the sdist and from it a wheel with all symbols, tagged for this machine."""
    env = {
        **os.environ,
        "CXX": str(_compiler()),
        "PATH": f"{native_build.BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
    }
    # Without --sdist or --wheel, `build` makes the wheel from the sdist.
    return native_build.run(
        [
            *(own_venv.PYTHON, "-m", "build", "--no-isolation", "--outdir", folder),
            *("-Cinstall.strip=false", "-Ccmake.args=-DLLAMA2Q_WERROR=ON", own_venv.ROOT),
        ],
        env,
    )


def _compiler() -> Path:
    """Write the program that CMake calls as the C++ compiler."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "zig-c++"
    command = [str(own_venv.PYTHON), "-m", "ziglang", "c++", "-target", TARGET]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def _repair(wheel: Path, out: Path) -> int:
    """Let auditwheel check what the wheel needs of the system, tag it and strip it."""
    env = {**os.environ, "PATH": f"{native_build.BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    auditwheel = [native_build.BIN / "auditwheel"]
    return native_build.run(
        [*auditwheel, "repair", "--strip", "--plat", PLATFORM, "--wheel-dir", out, wheel], env
    )


if __name__ == "__main__":
    sys.exit(main())
