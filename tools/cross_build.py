"""Compiles and links all of csrc for macOS (Arm, Intel) and Windows with `zig c++`, which needs no SDK.

Run it as `python3 tools/cross_build.py [TARGET ...]`. Warnings are errors. The bindings are compiled
with the headers of the running Python: those of macOS and Linux differ in a few sizes of
configuration only; Windows gets a small `pyconfig.h` of its own, and an import library that offers
just what the bindings ask of Python. What comes out proves that the text compiles and that nothing
but Python is missing; it is not meant to be shipped.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import native_build
import own_venv

ROOT = own_venv.ROOT
BUILD = ROOT / "build" / "cross"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What zig and CMake call a platform.

    Attributes
    ----------
    zig : str
        zig's name of it.
    system, processor : str
        CMake's names.
    """

    zig: str
    system: str
    processor: str


TARGETS = {
    "aarch64-macos": Target(zig="aarch64-macos.11.0", system="Darwin", processor="arm64"),
    "x86_64-macos": Target(zig="x86_64-macos.11.0", system="Darwin", processor="x86_64"),
    "x86_64-windows": Target(zig="x86_64-windows-gnu", system="Windows", processor="AMD64"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=[*TARGETS], metavar="TARGET")
    own_venv.ensure(extras=("cross",))
    return max(build(name) for name in parser.parse_args().targets)


def build(name: str, *options: str, folder: Path | None = None) -> int:
    """Configure and build everything for a target; return the exit code."""
    target = TARGETS[name]
    where = folder or BUILD / name
    return native_build.build(where, *cmake_options(target, where / "tools"), *options)


def cmake_options(target: Target, tools: Path) -> list[str]:
    """Write the compiler's programs into a folder; return what makes CMake use them."""
    tools.mkdir(parents=True, exist_ok=True)
    programs = {}
    for program, arguments in (
        ("c++", f"c++ -target {target.zig}"),
        ("ar", "ar"),
        ("ranlib", "ranlib"),
        ("rc", "rc"),
    ):
        path = programs[program] = tools / program
        path.write_text(
            f'#!/bin/sh\nexec "{own_venv.PYTHON}" -m ziglang {arguments} "$@"\n', encoding="utf-8"
        )
        path.chmod(0o755)
    return [
        f"-DCMAKE_SYSTEM_NAME={target.system}",
        f"-DCMAKE_SYSTEM_PROCESSOR={target.processor}",
        f"-DCMAKE_CXX_COMPILER={programs['c++']}",
        f"-DCMAKE_AR={programs['ar']}",
        f"-DCMAKE_RANLIB={programs['ranlib']}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DLLAMA2Q_WERROR=ON",
    ]
