"""Read the ISA units' object files: nothing compiled with AVX-512 may leak into the baseline.

A weak symbol (an inline function or a template of external linkage) in an ISA unit could be the
copy that the linker keeps for every caller, and would then run on CPUs without that instruction
set. A dynamic initialiser would run such code at import. Both are refused, and so is any call out
of the unit but for the three memory functions that compilers emit themselves. The units may be of
another machine than this one: aarch64's, cross-compiled, are read as well.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ALLOWED_CALLS = {"memcpy", "memmove", "memset"}
# llama2q::kNameKernels, mangled.
TABLE = re.compile(r"_ZN7llama2q\d+k\w+KernelsE")
# Added by the compiler or linker for every position-independent object.
IGNORED = {"_GLOBAL_OFFSET_TABLE_"}


def faults_of(unit: Path) -> list[str]:
    """Return what is wrong with one object file, a sentence each."""
    faults = []
    symbols = subprocess.run(
        ["nm", "--format=posix", str(unit)], check=True, capture_output=True, text=True
    ).stdout
    tables = 0
    for line in symbols.splitlines():
        name, kind = line.split()[:2]
        if kind in "WVuwv":
            faults.append(f"weak symbol {name}")
        elif kind == "U" and name not in ALLOWED_CALLS | IGNORED:
            faults.append(f"call out of the unit: {name}")
        elif kind.isupper() and kind != "U":
            tables += 1
            if not TABLE.fullmatch(name):
                faults.append(f"symbol with external linkage: {name}")
    if tables != 1:
        faults.append(f"{tables} symbols with external linkage; expected its kernel table alone")
    sections = subprocess.run(
        ["objdump", "-h", str(unit)], check=True, capture_output=True, text=True
    ).stdout
    faults += [f"dynamic initialiser: {s}" for s in (".init_array", ".ctors") if s in sections]
    return faults


def main() -> int:
    """Check every ISA unit below a build folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path, help="a CMake build folder")
    build = parser.parse_args().build
    units = sorted(build.rglob("isa/*.cpp.o"))
    if not units:
        print(f"{build} holds no ISA units; build the project there first", file=sys.stderr)
        return 1
    failed = False
    for unit in units:
        faults = faults_of(unit)
        failed = failed or bool(faults)
        for fault in faults:
            print(f"{unit.name}: {fault}", file=sys.stderr)
        print(f"{unit.name}: {'FAILED' if faults else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
