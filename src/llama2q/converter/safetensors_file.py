"""A file in the safetensors form, read strictly: named tensors as views of the mapped file.

Source of the rules: huggingface/safetensors, README.md, section Format.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llama2q.closing import Closing
from llama2q.converter.foreign import HUB_AGAIN, describe_foreign
from llama2q.converter.json_file import parse_json_object, shown
from llama2q.converter.mapped_file import map_download
from llama2q.converter.mapped_tensor import MappedTensor
from llama2q.errors import ShardFormatError, TruncatedShardError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 24
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 48

ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of an element by dtype."""

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class SafetensorsFile(Closing):
    """A safetensors file, opened and checked (context manager); tensor data is not read.

    Attributes
    ----------
    path : Path
        The file.
    tensors : mapping
        The tensors by name, in the order of their places; `dtype` is the format's in lower case
        ("f32", "f16", "bf16", "i32", ...).

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    CheckpointNotFoundError
        There is no such file.
    TruncatedShardError
        The file is empty or shorter than its header says.
    ShardFormatError
        It is something else, or breaks a rule of the form.

    Notes
    -----
    A header whose length does not suit the dtype's alignment (old writers) makes `array` copy.
    """

    def __init__(self, path: str | Path) -> None:
        """Open and check."""
        self.path = Path(path)
        self._file = map_download(self.path)
        try:
            self.tensors = MappingProxyType(self._read_tensors())
        except BaseException:
            self._file.close()
            raise

    def check_crc(self, name: str) -> None:
        """Do nothing: the form has no checksums."""

    def close(self) -> None:
        """Unmap the file; arrays handed out stay valid."""
        self._file.close()

    def _read_tensors(self) -> dict[str, MappedTensor]:
        where = self.path.name
        start, entries = self._read_header()
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ShardFormatError(f"{where}: __metadata__ is not an object of strings")
        tensors = sorted(
            (self._parse(name, entry, start) for name, entry in entries.items()),
            key=lambda tensor: (tensor.offset, tensor.nbytes, tensor.name),
        )
        end, previous = start, "the start of the data"
        for tensor in tensors:
            if tensor.offset < end:
                raise ShardFormatError(f"{where}: {shown(tensor.name)} overlaps {previous}")
            if tensor.offset > end:
                raise ShardFormatError(
                    f"{where}: a hole of {tensor.offset - end} bytes lies between {previous} and "
                    f"{shown(tensor.name)}"
                )
            end, previous = end + tensor.nbytes, shown(tensor.name)
        if end > self._file.size:
            raise TruncatedShardError(
                f"{where} is truncated ({self._file.size} of {end} bytes); {HUB_AGAIN}"
            )
        if end < self._file.size:
            raise ShardFormatError(
                f"{where}: {self._file.size - end} bytes follow its last tensor; {HUB_AGAIN}"
            )
        return {tensor.name: tensor for tensor in tensors}

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        """Return the byte where data starts, and the header's JSON."""
        where = self.path.name
        head = self._file.read(0, min(512, self._file.size))
        foreign = describe_foreign(where, head, hub=True)
        if foreign is not None:
            raise ShardFormatError(foreign)
        if head.startswith(b"PK\x03\x04"):
            raise ShardFormatError(
                f"{where} is a zip archive, as torch.save writes it, not a safetensors file; give "
                "it the name pytorch_model.bin"
            )
        if len(head) <= LENGTH_BYTES:
            raise TruncatedShardError(f"{where} has {len(head)} bytes only; {HUB_AGAIN}")
        if head[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
            raise ShardFormatError(
                f"{where} starts with {head[:9]!r}; expected a safetensors file; {HUB_AGAIN}"
            )
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES:
            raise ShardFormatError(
                f"{where}: its header claims {length} bytes; expected at most {MAX_HEADER_BYTES}"
            )
        if LENGTH_BYTES + length > self._file.size:
            raise TruncatedShardError(
                f"{where} is truncated: it ends inside its header ({self._file.size} of "
                f"{LENGTH_BYTES + length} bytes); {HUB_AGAIN}"
            )
        data = self._file.read(LENGTH_BYTES, length)
        header = parse_json_object(data, f"the header of {where}", ShardFormatError)
        return LENGTH_BYTES + length, header

    def _parse(self, name: str, entry: Any, start: int) -> MappedTensor:
        where = f"{self.path.name}: {shown(name)}"
        if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
            raise ShardFormatError(f"{where} has not exactly the keys {sorted(_ENTRY_KEYS)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
            raise ShardFormatError(f"{where} has the unknown dtype {shown(dtype)}")
        if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_size, shape)):
            raise ShardFormatError(f"{where} has the shape {shown(shape)}; expected sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            raise ShardFormatError(
                f"{where} has the data_offsets {shown(offsets)}; expected two bytes' places"
            )
        begin, end = offsets
        expected = math.prod(shape) * ELEMENT_BYTES[dtype]
        if end - begin != expected:
            raise ShardFormatError(
                f"{where} of shape {shown(shape)} in {dtype} needs {expected} bytes; its place is "
                f"[{begin}, {end})"
            )
        if expected == 0:
            raise ShardFormatError(f"{where} is empty (shape {shown(shape)})")
        return MappedTensor(
            name=name,
            dtype=dtype.lower(),
            shape=tuple(shape),
            offset=start + begin,
            nbytes=expected,
            file=self._file,
        )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS
