"""Writing a `.pth` file in the zip form of `torch.save`, without torch and in little memory.

The archive has the same entries in the same order as torch's own: data.pkl (protocol 2), byteorder,
data/0 ..., version; all stored, each starting at a multiple of 64 bytes. Sources: torch's
serialization.py and inline_container.cc; PKWARE APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.crc32 import crc32_of_zeros
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import InvalidArgumentError
from llama2q.files import replace

ALIGNMENT = 64
"""Every entry's data starts at a multiple of this (bytes), as in torch."""

_STORAGES = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage"}
_FLAGS = 0x0808  # sizes and CRC follow the data; names are UTF-8
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor that is produced while it is written.

    `chunks` gives arrays whose elements follow each other; None leaves a hole that reads as zeros.
    """

    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[NDArray[Any]]] | None


def write_pth(
    path: str | Path,
    tensors: Mapping[str, NDArray[Any] | TensorSource]
    | Iterable[tuple[str, NDArray[Any] | TensorSource]],
    dtype: str,
) -> None:
    """Write a whole file.

    Parameters
    ----------
    path : str or Path
        The file; it appears under this name when it is complete.
    tensors : mapping, or iterable of pairs
        Name -> array of the dtype (uint16 holds the bits of bf16), or a `TensorSource`.
    dtype : str
        "f32", "f16" or "bf16".

    Raises
    ------
    InvalidArgumentError
        A dtype is unknown or an array has another one, or a source gives too few or many elements.
    """
    sources = dict(tensors)
    with PthWriter(path, {name: source.shape for name, source in sources.items()}, dtype) as writer:
        for name, source in sources.items():
            if not isinstance(source, TensorSource):
                writer.write(name, source)
            elif source.chunks is None:
                writer.skip(name)
            else:
                for chunk in source.chunks():
                    writer.write(name, chunk)


class PthWriter:
    """A file that is written tensor by tensor, chunk by chunk (context manager).

    Tensors come in the order of `shapes`. On a clean exit all must be complete; the file then
    appears under its name. An error leaves nothing behind.

    Parameters
    ----------
    path : str or Path
        The file.
    shapes : mapping
        Tensor name -> shape in elements.
    dtype : str
        "f32", "f16" or "bf16".
    """

    def __init__(self, path: str | Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        """Create the file and write its pickle."""
        if dtype not in NUMPY_DTYPES:
            raise InvalidArgumentError(f"dtype is {dtype!r}; expected one of {[*NUMPY_DTYPES]}")
        self.path = Path(path)
        self._shapes = dict(shapes)
        self._dtype = NUMPY_DTYPES[dtype]
        self._root = self.path.stem
        self._pending = iter([*self._shapes])
        self._current: str | None = None
        self._left = 0
        self._crc = 0
        self._index = -1
        self._entry = (b"", 0, 0)  # name, bytes, offset of the local header
        self._central: list[bytes] = []
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = self._part.open("wb")
        try:
            self._add_bytes("data.pkl", _pickle(self._shapes, dtype))
            self._add_bytes("byteorder", b"little")
            self._next_tensor()
        except BaseException:
            self._abandon()
            raise

    def write(self, name: str, chunk: NDArray[Any]) -> None:
        """Append elements to the tensor that is due.

        Parameters
        ----------
        name : str
            The tensor; all before it must be complete.
        chunk : array of the file's dtype, any shape
            The next elements, in C order.

        Raises
        ------
        InvalidArgumentError
            Another tensor is due, or dtype or size do not fit.
        """
        if chunk.dtype != self._dtype:
            raise InvalidArgumentError(
                f"{name} has the dtype {chunk.dtype}; expected {self._dtype}"
            )
        self._expect(name, chunk.nbytes)
        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._left -= chunk.nbytes
        if self._left == 0:
            self._end_entry(self._crc)
            self._next_tensor()

    def skip(self, name: str) -> None:
        """Leave the whole tensor that is due as a hole, which reads as zeros."""
        nbytes = self._nbytes(name)
        self._expect(name, nbytes)
        if self._left != nbytes:
            raise InvalidArgumentError(f"{name} has been begun, so it cannot be a hole")
        self._file.seek(nbytes, 1)
        self._end_entry(crc32_of_zeros(nbytes))
        self._next_tensor()

    def close(self) -> None:
        """Complete the archive and give it its name."""
        if self._file.closed:
            return
        if self._current is not None:
            self._abandon()
            raise InvalidArgumentError(f"{self._current} lacks {self._left} bytes")
        try:
            self._add_bytes("version", b"3\n")
            self._write_directory()
            self._file.close()
            replace(self._part, self.path)
        except BaseException:
            self._abandon()
            raise

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, or remove it after an error."""
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._dtype.itemsize

    def _expect(self, name: str, nbytes: int) -> None:
        if name != self._current:
            raise InvalidArgumentError(f"{name} was given; {self._current} is due")
        if nbytes > self._left:
            raise InvalidArgumentError(f"{name}: {nbytes} bytes were given; {self._left} are due")

    def _next_tensor(self) -> None:
        """Begin the next tensor's entry."""
        self._current = next(self._pending, None)
        if self._current is not None:
            self._index += 1
            self._left = self._nbytes(self._current)
            if self._left == 0:
                raise InvalidArgumentError(f"{self._current} is empty")
            self._begin_entry(f"data/{self._index}", self._left)

    # --- zip ---

    def _add_bytes(self, name: str, data: bytes) -> None:
        self._begin_entry(name, len(data))
        self._file.write(data)
        self._end_entry(zlib.crc32(data))

    def _begin_entry(self, name: str, size: int) -> None:
        """Write the local header, padded so that the data is aligned."""
        self._crc = 0
        self._entry = (f"{self._root}/{name}".encode(), size, self._file.tell())
        encoded, _, offset = self._entry
        wide = struct.pack("<2H2Q", 1, 16, 0, 0) if size >= _MAX32 else b""
        unpadded = offset + 30 + len(encoded) + len(wide) + 4
        padding = -unpadded % ALIGNMENT
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        header = struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 45, _FLAGS, 0, 0, 0, 0, 0, 0, len(encoded), len(extra)
        )
        self._file.write(header + encoded + extra)

    def _end_entry(self, crc: int) -> None:
        """Write the data descriptor and remember the entry for the directory."""
        encoded, size, offset = self._entry
        form = "<4sL2Q" if size >= _MAX32 else "<4s3L"
        self._file.write(struct.pack(form, b"PK\x07\x08", crc, size, size))
        wide = [value for value in (size, size, offset) if value >= _MAX32]
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        narrow = min(size, _MAX32)
        self._central.append(
            struct.pack(
                "<4s6H3L5H2L", b"PK\x01\x02", 45, 45, _FLAGS, 0, 0, 0, crc, narrow, narrow,
                len(encoded), len(extra), 0, 0, 0, 0, min(offset, _MAX32),
            )
            + encoded
            + extra
        )  # fmt: skip

    def _write_directory(self) -> None:
        offset = self._file.tell()
        size = self._file.write(b"".join(self._central))
        count = len(self._central)
        if count >= _MAX16 or size >= _MAX32 or offset >= _MAX32:
            fields = (44, 45, 45, 0, 0, count, count, size, offset)
            self._file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", *fields))
            self._file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1))
        count, size, offset = min(count, _MAX16), min(size, _MAX32), min(offset, _MAX32)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
        self._file.write(end)


def _pickle(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """Write the pickle of a dict of contiguous tensors, one storage each."""
    parts = [b"\x80\x02}("]  # PROTO 2, EMPTY_DICT, MARK
    for index, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        parts += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",  # GLOBAL, two MARKs
            _text("storage"),
            f"ctorch\n{_STORAGES[dtype]}\n".encode(),
            _text(str(index)),
            _text("cpu"),
            _integer(math.prod(shape)),
            b"tQ",  # TUPLE, BINPERSID
            _integer(0),
            *_tuple(shape),
            *_tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",  # NEWFALSE, an empty OrderedDict, the call
        ]
    return b"".join([*parts, b"u."])  # SETITEMS, STOP


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<L", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<l", value)
    encoded = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + encoded


def _tuple(values: Iterable[int]) -> Iterator[bytes]:
    yield b"("
    yield from map(_integer, values)
    yield b"t"
