"""A file mapped into memory for reading: views without copies, and pages given back."""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.converter.foreign import HUB_AGAIN
from llama2q.errors import CheckpointNotFoundError, ClosedError, TruncatedShardError

_CRC_CHUNK = 1 << 24


def map_download(path: Path) -> MappedFile:
    """Map a file of Hugging Face's hub.

    Raises
    ------
    CheckpointNotFoundError
        There is no such file.
    TruncatedShardError
        It is empty.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise TruncatedShardError(f"{path.name} is empty; {HUB_AGAIN}")
    return MappedFile(path)


class MappedFile(Closing):
    """A read-only map of a whole, non-empty file (context manager).

    Arrays made from it stay valid after `close`: the map goes away with the last of them.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    OSError
        The file cannot be opened or mapped.
    ValueError
        The file is empty.
    """

    def __init__(self, path: Path) -> None:
        """Map the file."""
        self.path = path
        with path.open("rb") as file:
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self._map)

    def _mapped(self, offset: int, nbytes: int) -> mmap.mmap:
        if self._map is None:
            raise ClosedError(f"{self.path.name} has been closed")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise ValueError(
                f"{self.path.name}: bytes [{offset}, {offset + nbytes}) lie outside its {self.size}"
            )
        return self._map

    def read(self, offset: int, nbytes: int) -> bytes:
        """Copy `nbytes` bytes out of the file."""
        return self._mapped(offset, nbytes)[offset : offset + nbytes]

    def array(self, offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """View `count` elements from byte `offset` on as a read-only array, shape (count,).

        A start that does not suit the dtype's alignment gives a read-only copy instead.
        """
        mapped = self._mapped(offset, count * dtype.itemsize)
        if count == 0:
            array = np.empty(0, dtype)
        else:
            array = np.frombuffer(mapped, dtype=dtype, count=count, offset=offset)
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array

    def crc32(self, offset: int, nbytes: int) -> int:
        """Return the CRC-32 of a range of bytes, as zip archives store it."""
        mapped = self._mapped(offset, nbytes)
        crc = 0
        with memoryview(mapped) as view:
            for start in range(offset, offset + nbytes, _CRC_CHUNK):
                crc = zlib.crc32(view[start : min(start + _CRC_CHUNK, offset + nbytes)], crc)
        return crc

    def release(self, offset: int, nbytes: int) -> None:
        """Tell the kernel that a range is done with, so that its pages leave the process.

        Reading the range again is allowed and brings the pages back. Does nothing where the
        platform has no such call, or after `close`.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if self._map is None or advice is None or nbytes <= 0:
            return
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(advice, start, min(offset + nbytes, self.size) - start)

    def close(self) -> None:
        """Drop the map; arrays that still view it keep it alive."""
        mapped, self._map = self._map, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                return  # viewed by an array: unmapped when the last view goes
