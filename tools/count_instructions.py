"""Count the instructions of the Arm units' hot loops: `python tools/count_instructions.py BUILD`.

BUILD is a CMake build folder for aarch64. A hot loop is the innermost loop of a kernel that holds
its products (sdot or smmla), as objdump shows it. Instructions are counted as they stand: they say
how much there is to issue, nothing about time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

OBJDUMP = "aarch64-linux-gnu-objdump"
PRODUCTS = ("sdot", "smmla")
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)(?:\s+(.*))?$")
_TARGET = re.compile(r"\b([0-9a-f]+) <")


@dataclass(frozen=True)
class Kernel:
    """A hot loop that is looked for.

    Attributes
    ----------
    unit, name : str
        The ISA unit; what the table calls the loop.
    function : str
        Pattern of the demangled function.
    codes, tokens : int
        Weights that one pass of the loop multiplies, and by how many tokens' activations each.
    """

    unit: str
    name: str
    function: str
    codes: int
    tokens: int


KERNELS = tuple(
    kernel
    for unit, line in (("neon", 64), ("neon_i8mm", 128))
    for kernel in (
        Kernel(unit, "int4, one token", r"stream_band<.*Int4Lines.*, 1>\(", 128, 1),
        Kernel(unit, "int8, one token", r"stream_band<.*Int8Lines.*, 1>\(", 64, 1),
        Kernel(unit, "panel tile of 6 tokens, int4 and int8", r"panel_tile<.*, 1, 6>\(", line, 6),
    )
)


@dataclass(frozen=True)
class Loop:
    """A loop as it was found.

    Attributes
    ----------
    mnemonics : Counter
        How often each instruction stands in it.
    on_stack : int
        Instructions that name the stack pointer: registers that did not suffice.
    """

    mnemonics: Counter[str]
    on_stack: int

    @property
    def total(self) -> int:
        """All instructions."""
        return sum(self.mnemonics.values())


def functions(unit: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Return the instructions of each function: address, mnemonic, operands."""
    text = subprocess.run(
        [OBJDUMP, "-dC", "--no-show-raw-insn", str(unit)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found: dict[str, list[tuple[int, str, str]]] = {}
    body: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            body = found.setdefault(match[1], [])
        elif match := _INSTRUCTION.match(line):
            body.append((int(match[1], 16), match[2], match[3] or ""))
    return found


def innermost_loops(body: list[tuple[int, str, str]]) -> list[Loop]:
    """Return the loops that hold no other loop: from a branch's target back to the branch."""
    ranges = []
    for address, mnemonic, operands in body:
        target = _TARGET.search(operands)
        if target and mnemonic[0] in "bct" and int(target[1], 16) <= address:
            ranges.append((int(target[1], 16), address))
    inner = [
        (first, last)
        for first, last in ranges
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in ranges)
    ]
    loops = []
    for first, last in sorted(set(inner)):
        inside = [(mnemonic, rest) for at, mnemonic, rest in body if first <= at <= last]
        on_stack = sum("sp" in re.findall(r"\w+", rest) for _, rest in inside)
        loops.append(Loop(Counter(mnemonic for mnemonic, _ in inside), on_stack))
    return loops


def hot_loop(build: Path, kernel: Kernel) -> Loop:
    """Return the loop of a kernel; raise ValueError unless there is exactly one."""
    (unit,) = build.rglob(f"isa/{kernel.unit}.cpp.o")
    loops = [
        loop
        for name, body in functions(unit).items()
        if re.search(kernel.function, name)
        for loop in innermost_loops(body)
        if any(loop.mnemonics[product] for product in PRODUCTS)
    ]
    if len(loops) != 1:
        raise ValueError(f"{kernel.unit}: {kernel.name}: {len(loops)} loops; expected one")
    return loops[0]


def table(build: Path) -> list[str]:
    """Return the lines of the table in csrc/README.md."""
    lines = [
        "| loop | unit | instructions per 64 codes | of these products | per token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kernel in sorted(KERNELS, key=lambda kernel: kernel.name):
        loop = hot_loop(build, kernel)
        each = loop.total * 64 / kernel.codes
        products = sum(loop.mnemonics[name] for name in PRODUCTS) * 64 / kernel.codes
        names = " ".join(name for name in PRODUCTS if loop.mnemonics[name])
        lines.append(
            f"| {kernel.name} | `{kernel.unit}` | {each:g} | {products:g} {names} "
            f"| {each / kernel.tokens:.1f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path, help="a CMake build folder for aarch64")
    parser.add_argument("--loops", action="store_true", help="also every instruction's count")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.build)))
    if arguments.loops:
        for kernel in KERNELS:
            loop = hot_loop(arguments.build, kernel)
            counts = ", ".join(f"{n} {name}" for name, n in loop.mnemonics.most_common())
            print(f"{kernel.unit}, {kernel.name}: {counts}; {loop.on_stack} on the stack")
    return 0


if __name__ == "__main__":
    sys.exit(main())
