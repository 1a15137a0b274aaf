"""What only `tools/test.py --all` runs on Linux for other systems: cross builds, wine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cross_build
import native_build
import own_venv

_WINE_FOLDER = Path("/usr/lib/wine")
"""Where Debian's wine64 has its programs, which it does not put on the PATH."""
_QUIET = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}


def steps() -> list[tuple[str, Callable[[], int]]]:
    """Return the name and the function of each check; a function returns an exit code."""
    return [
        *((f"cross build: {name}", _builder(name)) for name in cross_build.TARGETS),
        ("Windows programs under wine", under_wine),
    ]


def _builder(target: str) -> Callable[[], int]:
    return lambda: cross_build.build(target)


def under_wine() -> int:
    """Run the checks of a platform as Windows programs.

    The kernels of every instruction set and whole steps give the bits of Linux's scalar kernels,
    and csrc/base/os does what it says. wine is not Windows: it passes most of this on to Linux.
    """
    wine = shutil.which("wine64") or shutil.which("wine64", path=_WINE_FOLDER)
    if wine is None:
        print("wine64 is missing; on Debian: apt install wine64", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
        env |= {**_QUIET, "WINEPREFIX": str(folder / "wine")}
        make = [own_venv.PYTHON, own_venv.ROOT / "tests" / "golden" / "make_golden.py", folder]
        recorded = [folder / "kernels.golden", folder / "steps.golden"]
        run = native_build.run
        return (
            run(make)
            or run([wine, cross_build.program("x86_64-windows", "os_services"), folder], env)
            or run([wine, cross_build.program("x86_64-windows", "golden"), *recorded], env)
        )
