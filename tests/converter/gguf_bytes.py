"""GGUF files byte by byte, sound and hostile; nothing here needs the package gguf."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
"""Types of values."""
_FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
          U64: "Q", I64: "q", F64: "d"}  # fmt: skip
DATA = np.arange(64, dtype="<f4").tobytes()


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def number(kind: int, value: float) -> bytes:
    return struct.pack("<" + _FORMS[kind], value)


def value(key: str | bytes, kind: int, payload: bytes) -> bytes:
    """Return a key with its value."""
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(
    name: str | bytes = "a",
    sizes: Sequence[int] = (16, 2),
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """Return a tensor's entry; by default of 16 float32 in 2 rows, at the start of the data."""
    count = len(sizes) if n_dims is None else n_dims
    return (
        text(name)
        + struct.pack(f"<I{len(sizes)}Q", count, *sizes)
        + struct.pack("<IQ", kind, offset)
    )


def raw_gguf(
    path: Path,
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: bytes = DATA,
    version: int = 3,
    n_tensors: int | None = None,
    n_values: int | None = None,
    alignment: int = 32,
) -> Path:
    """Write a file of these entries; `data` is the section of the tensors."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*values, *tensors])
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def sound(path: Path) -> Path:
    """Write a sound file with a value of every type and two tensors."""
    values = [
        value("general.architecture", STRING, text("llama")),
        *(value(f"one.{kind}", kind, number(kind, 1)) for kind in _FORMS),
        value("texts", ARRAY, array(STRING, 3, text("a") + text("") + text("\u4e16"))),
        value("numbers", ARRAY, array(F32, 2, number(F32, 0.5) + number(F32, -2))),
        value("flags", ARRAY, array(BOOL, 2, b"\x01\x00")),
    ]
    return raw_gguf(path, values, [tensor("a"), tensor("b", (32,), 0, 128)])
