"""Builds all of csrc for macOS (Arm, Intel) and Windows with `zig c++`, which needs no SDK.

Run it as `python3 tools/cross_build.py [TARGET ...]` on Linux. Warnings are errors. It compiles and
links the extension and the programs that check a platform (tests/golden, tests/cross), and proves
that the text compiles and that nothing but Python is missing. Python's headers are those that run
this, which differ from macOS's in no more than `pyconfig.h`; Windows gets its own `pyconfig.h`, and
an import library that offers what the headers declare. The result is not meant to be shipped.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import native_build
import own_venv
import python_headers

ROOT = own_venv.ROOT
BUILD = ROOT / "build" / "cross"
PROGRAMS = {"golden": "tests/golden/cpp/golden", "os_services": "tests/cross/os/os_services"}
"""Name -> place in a build."""
_PYCONFIG = ROOT / "tests" / "cross" / "windows_python" / "pyconfig.h"
_TRANSLATED = """\
for a; do
  shift
  case "$a" in
    -bundle) a=-dynamiclib ;;
    -ldl) continue ;;
    -march=armv8.2-a*) a="-mcpu=generic+v8_2a${a#-march=armv8.2-a}" ;;
  esac
  set -- "$@" "$a"
done"""
"""zig 0.17's linker crashes on a bundle, and links the same objects as a dynamic library; its
names of extensions are those of -mcpu. CMake takes a library of the running Python along."""
_DECLARED = re.compile(r"PyAPI_(FUNC|DATA)\([^)]*\)\s*(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What zig and CMake call a platform.

    Attributes
    ----------
    zig : str
        zig's name of it, with the oldest system that it is built for.
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
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    targets = parser.parse_args().targets or [*TARGETS]
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(TARGETS)}")
    own_venv.ensure(extras=("cross",))
    return max(build(name) for name in targets)


def build(name: str) -> int:
    """Configure and build everything for a target; return the exit code."""
    target, folder = TARGETS[name], BUILD / name
    programs = _write_programs(target, folder / "tools")
    options = [
        f"-DCMAKE_SYSTEM_NAME={target.system}",
        f"-DCMAKE_SYSTEM_PROCESSOR={target.processor}",
        f"-DCMAKE_CXX_COMPILER={programs['c++']}",
        f"-DCMAKE_AR={programs['ar']}",
        f"-DCMAKE_RANLIB={programs['ranlib']}",
        "-DLLAMA2Q_WERROR=ON",
        "-DLLAMA2Q_CROSS_CHECKS=ON",
    ]
    if target.system == "Windows":
        options += _windows_python(programs["dlltool"], folder / "python")
    else:
        include = python_headers.copy(folder / "python", python_headers.pyconfig())
        options.append(f"-DPython_INCLUDE_DIR={include}")
    return native_build.build(folder, *options)


def program(target: str, name: str) -> Path:
    """Return where the build of a target has one of PROGRAMS."""
    suffix = ".exe" if TARGETS[target].system == "Windows" else ""
    return BUILD / target / (PROGRAMS[name] + suffix)


def _write_programs(target: Target, folder: Path) -> dict[str, Path]:
    """Write the compiler's programs, which are one in zig."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = {}
    for name, command in (
        ("c++", f"c++ -target {target.zig}"),
        ("ar", "ar"),
        ("ranlib", "ranlib"),
        ("dlltool", "dlltool"),
    ):
        path = programs[name] = folder / name
        lines = ["#!/bin/sh", f'exec "{own_venv.PYTHON}" -m ziglang {command} "$@"', ""]
        if name == "c++":
            lines.insert(1, _TRANSLATED)
        path.write_text("\n".join(lines), encoding="utf-8")
        path.chmod(0o755)
    return programs


def _windows_python(dlltool: Path, folder: Path) -> list[str]:
    """Make Windows's headers and import library of Python; return what makes CMake use them."""
    include = python_headers.copy(folder, _PYCONFIG)
    declared = {
        (function, kind)
        for header in include.rglob("*.h")
        for kind, function in _DECLARED.findall(header.read_text(encoding="utf-8"))
    }
    lines = [f"  {what}{' DATA' if kind == 'DATA' else ''}" for what, kind in sorted(declared)]
    name = f"python{sys.version_info.major}{sys.version_info.minor}"
    dll, definition, library = f"{name}.dll", folder / f"{name}.def", folder / f"lib{name}.dll.a"
    definition.write_text("\n".join([f"LIBRARY {dll}", "EXPORTS", *lines, ""]), encoding="utf-8")
    arguments = ("-m", "i386:x86-64", "-D", dll, "-d", definition, "-l", library)
    if native_build.run([dlltool, *arguments]):
        raise SystemExit("zig dlltool could not make an import library of Python")
    return [
        f"-DPython_INCLUDE_DIR={include}",
        f"-DPython_LIBRARY={library}",
        "-DPYTHON_MODULE_EXTENSION=.pyd",
    ]


if __name__ == "__main__":
    sys.exit(main())
