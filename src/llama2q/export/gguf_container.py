"""The GGUF container, version 3: header, metadata, list of tensors, aligned data.

Source: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

ALIGNMENT = 32
"""Data, and every tensor in it, starts at a multiple of this many bytes."""

BLOCK = 32
"""Elements of a row that share a scale."""

_MAGIC, _VERSION = b"GGUF", 3

Value: TypeAlias = "bool | int | float | str | list[str] | list[int] | list[float]"
"""int stands for uint32 and, in a list, int32; float for float32."""


@dataclass(frozen=True, slots=True)
class GgufType:
    """A tensor type of GGUF.

    Attributes
    ----------
    number : int
        Its `ggml_type`.
    file_type : int
        The `llama_ftype` of a file in which most weights have it.
    block_elements, block_bytes : int
        A row is a sequence of blocks of so many elements, each of so many bytes.
    """

    number: int
    file_type: int
    block_elements: int
    block_bytes: int

    def n_bytes(self, rows: int, cols: int) -> int:
        """Size of a matrix whose rows are whole blocks."""
        return rows * (cols // self.block_elements) * self.block_bytes


F32 = GgufType(0, 0, 1, 4)
F16 = GgufType(1, 1, 1, 2)
BF16 = GgufType(30, 32, 1, 2)
Q4_0 = GgufType(2, 2, BLOCK, 18)
Q8_0 = GgufType(8, 7, BLOCK, 34)
IQ4_NL = GgufType(20, 25, BLOCK, 18)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """An entry of the list of tensors; the shape has rows first, as NumPy has it."""

    name: str
    shape: tuple[int, ...]
    kind: GgufType
    n_bytes: int


def build_header(metadata: Mapping[str, Value], tensors: Iterable[GgufTensor]) -> bytes:
    """Return all that precedes the data, filled up to `ALIGNMENT`.

    Parameters
    ----------
    metadata : mapping of str to value
    tensors : iterable of GgufTensor
        In the order of their data, each of which is filled up to `ALIGNMENT`.
    """
    entries = list(tensors)
    header = bytearray(_MAGIC + struct.pack("<IQQ", _VERSION, len(entries), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    offset = 0
    for entry in entries:
        dims = entry.shape[::-1]
        header += _text(entry.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        header += struct.pack("<IQ", entry.kind.number, offset)
        offset += entry.n_bytes + -entry.n_bytes % ALIGNMENT
    return bytes(header) + bytes(-len(header) % ALIGNMENT)


_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
"""Types of metadata values."""


def _value(value: Value) -> bytes:
    if isinstance(value, list):
        kind, pack = _ITEMS[type(value[0])]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(map(pack, value))
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<I", _STRING) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


_ITEMS: dict[type, tuple[int, Any]] = {
    str: (_STRING, _text),
    int: (_INT32, struct.Struct("<i").pack),
    float: (_FLOAT32, struct.Struct("<f").pack),
}
