"""A file that appears whole or not at all: streamed into `NAME.part`, then renamed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import (
    FileInUseError,
    InvalidArgumentError,
    OutputExistsError,
)
from llama2q.files import (
    fsync_folder,
    is_open_under,
    leave_page_cache,
    lock,
    replace,
    require_replaceable,
)
from llama2q.format.outline import check_disk_room, named_write_errors, part_path
from llama2q.format.writer import refuse_existing

Progress = Callable[[int, int, str], None]
"""progress(done_bytes, total_bytes, name of the tensor that is next)."""


@dataclass(frozen=True, slots=True)
class StreamedTensor:
    """A tensor that is yet to be computed.

    Attributes
    ----------
    name : str
        In the form that is written.
    n_bytes : int
    chunks : callable
        Yields its bytes as arrays that follow each other.
    """

    name: str
    n_bytes: int
    chunks: Callable[[], Iterator[NDArray[Any]]]


def _refuse_existing(path: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuse a name that must not be replaced, `source` above all."""
    if source is not None and path.exists() and path.samefile(source):
        raise InvalidArgumentError(f"{path} is the file to export; give another name")
    refuse_existing(path, overwrite=overwrite)
    require_replaceable(path)


def write_file(
    path: Path,
    header: bytes,
    tensors: Sequence[StreamedTensor],
    *,
    alignment: int = 1,
    source: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write header and tensors; nothing is left under any name if that fails.

    Parameters
    ----------
    path : Path
    header : bytes
        A multiple of `alignment`.
    tensors : sequence of StreamedTensor
        In the order of the file.
    alignment : int
        Each tensor is filled up with zeros to a multiple of this many bytes.
    source : Path, optional
        The file that the tensors come from, which must not be replaced.
    overwrite : bool
        Whether an existing file is replaced.
    progress : callable, optional

    Returns
    -------
    int
        The size of the file, in bytes.

    Raises
    ------
    OutputExistsError, DiskSpaceError, OutputError, FileInUseError, InvalidArgumentError
        See `llama2q.errors`.
    """
    total = len(header) + sum(t.n_bytes + -t.n_bytes % alignment for t in tensors)
    with named_write_errors(path, total, "export"):
        _refuse_existing(path, source, overwrite=overwrite)
        check_disk_room(path, total)
        part = part_path(path)
        with part.open("ab") as file:
            if not lock(file) or not is_open_under(file, part):
                raise OutputExistsError(f"{part} is being written by another process")
            try:
                _write_all(file, header, tensors, alignment, total, progress)
                _refuse_existing(path, source, overwrite=overwrite)
                if sys.platform == "win32":
                    file.close()  # an open file cannot be renamed; elsewhere it stays locked
                replace(part, path)
            except FileInUseError:
                raise  # its message says that the new content is in the unfinished file
            except BaseException:
                if sys.platform == "win32":
                    file.close()
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            if not file.closed:
                leave_page_cache(file)
        fsync_folder(path.parent)
    if progress is not None:
        progress(total, total, "")
    return total


def _write_all(
    file: BinaryIO,
    header: bytes,
    tensors: Sequence[StreamedTensor],
    alignment: int,
    total: int,
    progress: Progress | None,
) -> None:
    file.truncate(0)
    file.write(header)
    done = len(header)
    for tensor in tensors:
        if progress is not None:
            progress(done, total, tensor.name)
        _write_tensor(file, tensor)
        file.write(bytes(-tensor.n_bytes % alignment))
        done += tensor.n_bytes + -tensor.n_bytes % alignment
    file.flush()
    os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, tensor: StreamedTensor) -> None:
    written = 0
    for chunk in tensor.chunks():
        view = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        file.write(view)
        written += len(view)
    if written != tensor.n_bytes:
        raise InvalidArgumentError(f"{tensor.name} has {written} bytes, not {tensor.n_bytes}")
