"""Golden files: named cases of named arrays, for a reader without libraries.

`cpp/golden_file.h` describes the form and reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAGIC = b"l2qgold1"
Value: TypeAlias = NDArray[Any] | int | float
"""An array of any shape; an int is stored as int64, a float as float32."""


@dataclass(frozen=True)
class Case:
    """Inputs of one op and what the scalar kernel makes of them.

    Parameters
    ----------
    name : str
        Unique in its file.
    op : str
        What the driver runs.
    fields : mapping of str to Value
        Arguments and expected results.
    """

    name: str
    op: str
    fields: Mapping[str, Value]


def write_golden(path: Path, cases: Iterable[Case]) -> int:
    """Write a golden file; return the number of cases."""
    names: set[str] = set()
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<Q", 0))
        for case in cases:
            if case.name in names:
                raise ValueError(f"two cases are named {case.name}")
            names.add(case.name)
            _text(file, case.name)
            _text(file, case.op)
            file.write(struct.pack("<Q", len(case.fields)))
            for name, value in case.fields.items():
                array = _array(value)
                _text(file, name)
                file.write(struct.pack("<QQ", array.itemsize, array.size))
                file.write(array.tobytes())
        file.seek(len(MAGIC))
        file.write(struct.pack("<Q", len(names)))
    return len(names)


def _array(value: Value) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    return np.array([value], np.float32 if isinstance(value, float) else np.int64)


def _text(file: BinaryIO, text: str) -> None:
    encoded = text.encode("ascii")
    file.write(struct.pack("<Q", len(encoded)) + encoded)
