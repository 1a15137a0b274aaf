"""What a library of CUDA kernels holds for which architectures, as `cuobjdump --list-elf` says it.

NVIDIA does not document the section .nv_fatbin. It holds containers, each with a header (magic,
version, its own bytes, bytes of what follows) and entries, and each entry a header of its own: its
kind, its bytes, the bytes of what follows, and the architecture at byte 28.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0xBA55ED50
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
_KINDS = {1: "ptx", 2: "elf"}
_SECTION = re.compile(r"\s\.nv_fatbin\s+\w+\s+\w+\s+(\w+)\s+(\w+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """Code for one architecture.

    Attributes
    ----------
    kind : {"elf", "ptx"}
        Machine code, or the text that the driver compiles.
    architecture : int
        75 for sm_75.
    n_bytes : int
        As it lies there: compressed.
    """

    kind: str
    architecture: int
    n_bytes: int


def read(library: Path) -> list[Entry]:
    """Return the entries of a library, in its order.

    Raises
    ------
    ValueError
        If there is no such section, or it is not made as expected.
    """
    sections = subprocess.run(
        ["readelf", "--wide", "--section-headers", str(library)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = _SECTION.search(sections)
    if found is None:
        raise ValueError(f"{library.name} has no section .nv_fatbin")
    offset, size = int(found[1], 16), int(found[2], 16)
    return list(parse(library.read_bytes()[offset : offset + size]))


def parse(section: bytes) -> Iterator[Entry]:
    """Yield the entries of the section.

    Raises
    ------
    ValueError
        If it is not made as expected.
    """
    at = 0
    try:
        while at < len(section):
            magic, _, header, n_bytes = _CONTAINER.unpack_from(section, at)
            if magic != _MAGIC:
                raise ValueError(f"no fat binary at byte {at}: it begins with {magic:#x}")
            at, end = at + header, at + header + n_bytes
            while at < end:
                kind, _, header, n_bytes, architecture = _ENTRY.unpack_from(section, at)
                if kind not in _KINDS:
                    raise ValueError(f"an entry of unknown kind {kind} at byte {at}")
                yield Entry(_KINDS[kind], architecture, n_bytes)
                at += header + n_bytes
    except struct.error:
        raise ValueError(f"the fat binary ends inside a header, at byte {at}") from None
