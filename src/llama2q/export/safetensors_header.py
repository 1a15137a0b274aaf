"""The header of a safetensors file.

Source: huggingface/safetensors, README.md, section Format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_ITEM_BYTES = {"U32": 4, "F16": 2, "BF16": 2, "F32": 4}
_ALIGNMENT = 8
"""Data starts at a multiple of this many bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def build_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return length and JSON; the data of the entries follow in their order, without gaps."""
    values: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        end = offset + entry.n_bytes
        values[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(values, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
