"""Compiles the CUDA kernels and holds their registers, spills and shared memory to a budget.

Run it as `python3 tools/check_cuda.py`; it needs nvcc 13 and no GPU. Every kernel is compiled for
every architecture, warnings as errors, and what ptxas says of it is compared with
tools/cuda_budget.toml. `--update` writes what was found into that file; a kernel that got worse
then shows in the file's difference.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keep_messages
import native_build
import own_venv

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FEW = (75, 90)
"""What `tools/test.py` compiles without --all: the oldest, and the first with launches that
overlap."""
BUDGET = own_venv.ROOT / "tools" / "cuda_budget.toml"
_SOURCES = own_venv.ROOT / "csrc" / "cuda" / "sources.cmake"
_HEAD = """\
# What ptxas may take for each kernel of csrc/cuda: registers of a thread, and, where there are any,
# spilled bytes, bytes of stack and bytes of static shared memory; one number, or one for each
# architecture. tools/check_cuda.py compares and, with --update, writes this file.
"""
_ENTRY = re.compile(r"ptxas info +: Compiling entry function '(\w+)' for 'sm_(\d+)\w?'")
_FUNCTION = re.compile(r"ptxas info +: Function properties for (\w+)")
_FRAME = re.compile(r"\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill load")
_USED = re.compile(r"ptxas info +: Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a kernel takes on one architecture.

    Attributes
    ----------
    registers : int
        Of a thread.
    spills : int
        Bytes of a thread, stored and loaded.
    stack : int
        Bytes of a thread.
    shared : int
        Static bytes of a block.
    """

    registers: int
    spills: int = 0
    stack: int = 0
    shared: int = 0


FIELDS = ("registers", "spills", "stack", "shared")
Kernel = tuple[str, str]
"""Source file and name, with template arguments."""
Usages = Mapping[Kernel, Mapping[int, Usage]]
"""By kernel and architecture."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--architectures",
        type=int,
        nargs="+",
        choices=ARCHITECTURES,
        metavar="SM",
        help=f"compile for these alone (all: {' '.join(map(str, ARCHITECTURES))})",
    )
    parser.add_argument("--update", action="store_true", help="write the budget")
    arguments = parser.parse_args()
    if arguments.update and arguments.architectures:
        parser.error("--update needs all architectures")
    if missing := native_build.nvcc_missing():
        print(f"{missing}; nothing was checked", file=sys.stderr)
        return 1
    own_venv.ensure()
    if arguments.update:
        return update()
    return check(sorted(arguments.architectures or ARCHITECTURES))


def check(architectures: Sequence[int]) -> int:
    """Compile for these architectures and compare with the budget; return an exit code."""
    found = compiled(architectures)
    if found is None:
        return 1
    budget = parse_budget(BUDGET.read_text(encoding="utf-8"))
    faults = faults_of(found, budget, architectures)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(
            f"{len(faults)} faults. Change the kernel; or, where this is meant, run "
            "python3 tools/check_cuda.py --update and say in the commit why.",
            file=sys.stderr,
        )
    n_spare = sum(
        getattr(budget[kernel][architecture], field) > getattr(usage, field)
        for kernel, usages in found.items()
        for architecture, usage in usages.items()
        for field in FIELDS
        if architecture in budget.get(kernel, {})
    )
    if n_spare:
        print(f"{n_spare} values lie below the budget; --update lowers it")
    names = " ".join(f"sm_{architecture}" for architecture in architectures)
    print(f"{len(found)} kernels for {names}: {len(faults)} faults")
    return 1 if faults else 0


def update() -> int:
    """Compile for every architecture and write the budget; return an exit code."""
    found = compiled(ARCHITECTURES)
    if found is None:
        return 1
    BUDGET.write_text(format_budget(found), encoding="utf-8")
    print(f"{BUDGET.relative_to(own_venv.ROOT)}: {len(found)} kernels")
    return 0


def compiled(architectures: Sequence[int]) -> Usages | None:
    """Build the library for these architectures; return what its kernels take, or None."""
    names = [str(architecture) for architecture in architectures]
    folder = own_venv.ROOT / "build" / "-".join(["cuda", *names])
    launcher = f"{own_venv.PYTHON};{Path(keep_messages.__file__).resolve()}"
    if native_build.build(
        folder,
        *("-DLLAMA2Q_CUDA=ON", "-DLLAMA2Q_WERROR=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"),
        f"-DLLAMA2Q_CUDA_ARCHITECTURES={';'.join(names)}",
        f"-DCMAKE_CUDA_COMPILER_LAUNCHER={launcher}",
        target="llama2q_cuda",
    ):
        return None
    found: dict[Kernel, dict[int, Usage]] = {}
    for source in re.findall(r"\b\w+\.cu\b", _SOURCES.read_text(encoding="utf-8")):
        (messages,) = folder.glob(f"csrc/cuda/CMakeFiles/*/{source}.o{keep_messages.SUFFIX}")
        usages = parse_messages(messages.read_text(encoding="utf-8"))
        for (symbol, architecture), usage in usages.items():
            found.setdefault((source, symbol), {})[architecture] = usage
    names = kernel_names([symbol for _, symbol in found])
    return {
        (source, name): usages
        for ((source, _), usages), name in zip(found.items(), names, strict=True)
    }


def parse_messages(text: str) -> dict[tuple[str, int], Usage]:
    """Read what ptxas -v says.

    Parameters
    ----------
    text : str
        Of one source file and any number of architectures.

    Returns
    -------
    dict of tuple of str and int to Usage
        By mangled name and architecture. Functions that were not inlined count to the kernel that
        was compiled with them.
    """
    found: dict[tuple[str, int], Usage] = {}
    key: tuple[str, int] | None = None
    frame = (0, 0)
    for line in text.splitlines():
        if (entry := _ENTRY.match(line)) is not None:
            key, frame = (entry[1], int(entry[2])), (0, 0)
        elif (bytes_of := _FRAME.match(line)) is not None:
            stack, stores, loads = (int(number) for number in bytes_of.groups())
            frame = (frame[0] + stack, frame[1] + stores + loads)
        elif (used := _USED.match(line)) is not None and key is not None:
            shared = _SHARED.search(line)
            found[key] = Usage(int(used[1]), frame[1], frame[0], int(shared[1]) if shared else 0)
            key = None
    return found


def kernel_names(symbols: Sequence[str]) -> list[str]:
    """Demangle; leave out namespaces and parameters."""
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [short_name(name) for name in demangled]


def short_name(demangled: str) -> str:
    """Return a demangled kernel's name and template arguments."""
    name = re.sub(r"\(anonymous namespace\)::|llama2q::(?:cuda::)?", "", demangled)
    name = re.sub(r" (?=>)", "", name)
    return re.sub(r"\(.*\)$", "", re.sub(r"\((\w+)\)(\d)", r"\2", name)).removeprefix("void ")


def faults_of(found: Usages, budget: Usages, architectures: Iterable[int]) -> list[str]:
    """Return what goes beyond the budget, a sentence each."""
    faults = [
        f"{source}: {name} is not in the budget" for source, name in sorted(found.keys() - budget)
    ]
    for kernel in sorted(budget):
        for architecture in architectures:
            allowed = budget[kernel].get(architecture)
            usage = found.get(kernel, {}).get(architecture)
            where = f"{kernel[0]}: {kernel[1]}, sm_{architecture}"
            if usage is None:
                faults.append(f"{where}: in the budget, and was not compiled")
            elif allowed is None:
                faults.append(f"{where}: not in the budget")
            else:
                faults += [
                    f"{where}: {field} {getattr(usage, field)}, budget {getattr(allowed, field)}"
                    for field in FIELDS
                    if getattr(usage, field) > getattr(allowed, field)
                ]
    return faults


def parse_budget(text: str) -> dict[Kernel, dict[int, Usage]]:
    """Read the budget's file."""
    content = tomllib.loads(text)
    architectures: list[int] = content.pop("architectures")
    budget: dict[Kernel, dict[int, Usage]] = {}
    for source, kernels in content.items():
        for name, fields in kernels.items():
            columns = {
                field: value if isinstance(value, list) else [value] * len(architectures)
                for field, value in fields.items()
            }
            budget[source, name] = {
                architecture: Usage(**{field: column[i] for field, column in columns.items()})
                for i, architecture in enumerate(architectures)
            }
    return budget


def format_budget(found: Usages) -> str:
    """Return the budget's file: what was found, a line for each kernel."""
    lines = [_HEAD, f"architectures = {list(ARCHITECTURES)}"]
    source = ""
    for kernel in sorted(found):
        if kernel[0] != source:
            source = kernel[0]
            lines += ["", f'["{source}"]']
        fields = []
        for field in FIELDS:
            column = [getattr(found[kernel][architecture], field) for architecture in ARCHITECTURES]
            if any(column):
                fields.append(f"{field} = {column if len(set(column)) > 1 else column[0]}")
        lines.append(f'"{kernel[1]}" = {{ {", ".join(fields)} }}')
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
