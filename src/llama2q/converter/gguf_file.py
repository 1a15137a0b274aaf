"""A GGUF file, read strictly: its keys and values, and its tensors as views of the mapped file.

Every count, length and offset is compared with the file's size before anything is done with it.
Source of the rules: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.converter.foreign import HUB_AGAIN, describe_foreign
from llama2q.converter.gguf_types import TYPES, GgmlType
from llama2q.converter.json_file import shown
from llama2q.converter.mapped_file import MappedFile, map_download
from llama2q.errors import ShardFormatError, TruncatedShardError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_HEADER_BYTES = 1 << 25
MAX_ENTRIES = 1 << 16
"""Keys, or tensors."""
MAX_ELEMENTS = 1 << 20
"""Of an array."""
MAX_NAME_BYTES = 200
MAX_DIMS = 4
MAX_DIM = 1 << 40

_HEAD_BYTES = 24
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""NumPy's dtype for each type of a value but string and array."""

Value: TypeAlias = bool | int | float | str | NDArray[Any] | tuple[bytes, ...]
"""A number, a text, or an array: of numbers, or of texts as bytes."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GgufTensor:
    """A tensor in a GGUF file.

    Attributes
    ----------
    name : str
    type : GgmlType
    shape : tuple of int
        (out_features, in_features) for a matrix: the file has it in the other order.
    offset, nbytes : int
        Its place in the file, in bytes.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: MappedFile = field(repr=False)

    def rows(self) -> NDArray[np.uint8]:
        """View the tensor's bytes, row by row.

        Returns
        -------
        uint8, (rows, bytes of a row)
            Read-only; no data is read before it is touched.
        """
        n_rows = math.prod(self.shape[:-1])
        view = self.file.array(self.offset, self.nbytes, np.dtype(np.uint8))
        return view.reshape(n_rows, -1)

    def release(self) -> None:
        """Give the tensor's pages back to the kernel; it can still be read again."""
        self.file.release(self.offset, self.nbytes)


class GgufFile(Closing):
    """A GGUF file, opened and checked (context manager); tensor data is not read.

    Attributes
    ----------
    path : Path
        The file.
    values : mapping
        Key -> value.
    tensors : mapping
        The tensors by name, in the file's order.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    CheckpointNotFoundError
        There is no such file.
    TruncatedShardError
        The file is shorter than its header says.
    ShardFormatError
        It is something else, or breaks a rule of the form.
    """

    def __init__(self, path: str | Path) -> None:
        """Open and check."""
        self.path = Path(path)
        self._file = map_download(self.path)
        try:
            reader = _HeaderReader(self._file)
            n_tensors, n_values = reader.head()
            self.values: Mapping[str, Value] = MappingProxyType(reader.values(n_values))
            self.tensors: Mapping[str, GgufTensor] = MappingProxyType(
                reader.tensors(n_tensors, _alignment(self.path.name, self.values))
            )
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Unmap the file; arrays handed out stay valid."""
        self._file.close()


def _alignment(where: str, values: Mapping[str, Value]) -> int:
    found = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(found) is not int or not 8 <= found <= MAX_ALIGNMENT or found & (found - 1):
        raise ShardFormatError(
            f"{where}: general.alignment is {shown(found)}; expected a power of two from 8 to "
            f"{MAX_ALIGNMENT}"
        )
    return found


class _HeaderReader:
    """Reads what stands before the data, from the start on."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._where = file.path.name
        self._at = 0

    def head(self) -> tuple[int, int]:
        """Return how many tensors and values follow."""
        where = self._where
        start = self._file.read(0, min(512, self._file.size))
        if not start.startswith(MAGIC):
            raise ShardFormatError(
                describe_foreign(where, start, hub=True)
                or f"{where} starts with {start[:4]!r}; expected a GGUF file; {HUB_AGAIN}"
            )
        if len(start) < _HEAD_BYTES:
            raise TruncatedShardError(f"{where} has {len(start)} bytes only; {HUB_AGAIN}")
        version, n_tensors, n_values = struct.unpack_from("<IQQ", start, 4)
        if version not in VERSIONS:
            if version & 0xFFFF == 0 and version != 0:
                raise ShardFormatError(
                    f"{where} is a big-endian GGUF file; take a little-endian one"
                )
            raise ShardFormatError(
                f"{where} has GGUF version {version}; expected {VERSIONS[0]} or {VERSIONS[1]}: "
                "take a newer file of the model, or a newer llama2q"
            )
        for what, count in (("tensors", n_tensors), ("keys", n_values)):
            if count > MAX_ENTRIES:
                raise ShardFormatError(
                    f"{where} claims {count} {what}; expected at most {MAX_ENTRIES}"
                )
        self._at = _HEAD_BYTES
        return n_tensors, n_values

    def values(self, count: int) -> dict[str, Value]:
        """Read the keys and their values."""
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._name("a key")
            if key in found:
                raise ShardFormatError(f"{self._where} has the key {key} twice")
            (kind,) = self._unpack("<I", key)
            found[key] = self._value(kind, key)
        return found

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        """Read the tensors' names, types, shapes and places."""
        entries = [self._tensor() for _ in range(count)]
        start = self._at + -self._at % alignment
        found: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in entries:
            if name in found:
                raise ShardFormatError(f"{self._where} has the tensor {name} twice")
            if offset % alignment:
                raise ShardFormatError(
                    f"{self._where}: {name} lies at byte {offset} of the data; expected a multiple "
                    f"of {alignment}"
                )
            found[name] = GgufTensor(
                name=name,
                type=kind,
                shape=shape,
                offset=start + offset,
                nbytes=math.prod(shape) // kind.block * kind.block_bytes,
                file=self._file,
            )
        self._check_places(found)
        return found

    def _check_places(self, tensors: Mapping[str, GgufTensor]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for tensor, other in pairwise(ordered):
            if other.offset < tensor.offset + tensor.nbytes:
                raise ShardFormatError(f"{self._where}: {other.name} overlaps {tensor.name}")
        end = ordered[-1].offset + ordered[-1].nbytes if ordered else 0
        if end > self._file.size:
            raise TruncatedShardError(
                f"{self._where} is truncated ({self._file.size} of {end} bytes); {HUB_AGAIN}"
            )

    def _tensor(self) -> tuple[str, GgmlType, tuple[int, ...], int]:
        name = self._name("a tensor")
        where = f"{self._where}: {name}"
        (n_dims,) = self._unpack("<I", name)
        if not 1 <= n_dims <= MAX_DIMS:
            raise ShardFormatError(f"{where} has {n_dims} dimensions; expected 1 to {MAX_DIMS}")
        sizes = self._unpack(f"<{n_dims}Q", name)
        number, offset = self._unpack("<IQ", name)
        shape = tuple(reversed(sizes))
        if not all(1 <= size <= MAX_DIM for size in shape):
            raise ShardFormatError(f"{where} has the shape {shown(shape)}; expected sizes")
        if number not in TYPES:
            raise ShardFormatError(
                f"{where} has the type number {number}, which is not known here; take a file of "
                "another quantization of the model, or a newer llama2q"
            )
        kind = TYPES[number]
        if shape[-1] % kind.block:
            raise ShardFormatError(
                f"{where} has rows of {shape[-1]}; expected a multiple of {kind.block}, the block "
                f"of {kind.name}"
            )
        return name, kind, shape, offset

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._bytes(key).decode("utf-8", "replace")
        if kind != _ARRAY:
            number: float | int | bool = self._numbers(kind, 1, key)[0].item()
            return number
        item, count = self._unpack("<IQ", key)
        if count > MAX_ELEMENTS:
            raise ShardFormatError(
                f"{self._where}: {key} claims {count} elements; expected at most {MAX_ELEMENTS}"
            )
        if item == _STRING:
            self._require(8 * count, key)
            return tuple(self._bytes(key) for _ in range(count))
        return self._numbers(item, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> NDArray[Any]:
        if kind not in _NUMBERS:
            found = "an array of arrays" if kind == _ARRAY else f"a value of the type number {kind}"
            raise ShardFormatError(f"{self._where}: {key} is {found}; expected numbers or texts")
        dtype = np.dtype(_NUMBERS[kind])
        numbers = np.frombuffer(self._take(count * dtype.itemsize, key), dtype)
        if kind != _BOOL:
            return numbers
        if numbers.size and numbers.max() > 1:
            raise ShardFormatError(f"{self._where}: {key} is {numbers.max()}; expected 0 or 1")
        return numbers.astype(np.bool_)

    def _name(self, what: str) -> str:
        data = self._bytes(f"the name of {what}", MAX_NAME_BYTES)
        text = data.decode("latin-1")
        if not (data and text.isascii() and text.isprintable()):
            raise ShardFormatError(
                f"{self._where}: the name of {what} is {shown(text)}; expected printable ASCII"
            )
        return text

    def _bytes(self, what: str, most: int = MAX_HEADER_BYTES) -> bytes:
        (length,) = self._unpack("<Q", what)
        if length > most:
            raise ShardFormatError(
                f"{self._where}: {what} claims {length} bytes; expected at most {most}"
            )
        return self._take(length, what)

    def _unpack(self, form: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form), what))

    def _take(self, nbytes: int, what: str) -> bytes:
        self._require(nbytes, what)
        data = self._file.read(self._at, nbytes)
        self._at += nbytes
        return data

    def _require(self, nbytes: int, what: str) -> None:
        end = self._at + nbytes
        if end > self._file.size:
            raise TruncatedShardError(
                f"{self._where} is truncated: it ends inside its header, in {what} "
                f"({self._file.size} of {end} bytes or more); {HUB_AGAIN}"
            )
        if end > MAX_HEADER_BYTES:
            raise ShardFormatError(
                f"{self._where}: its header goes beyond {MAX_HEADER_BYTES} bytes, in {what}; "
                "expected a smaller one"
            )
