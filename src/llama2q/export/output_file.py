"""A file that appears whole or not at all: streamed into `NAME.part`, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import (
    DiskSpaceError,
    InvalidArgumentError,
    Llama2qError,
    OutputError,
    OutputExistsError,
)
from llama2q.files import fsync_folder, leave_page_cache, lock, replace, require_replaceable

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
    """Raise unless a file of this name may be written.

    Raises
    ------
    OutputExistsError
        It is a folder, or exists and `overwrite` was not asked for.
    InvalidArgumentError
        Its folder does not exist, or it is `source`.
    FileInUseError
        On Windows: a program has the file open that is to be replaced.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"the folder {path.parent} does not exist")
    if source is not None and path.exists() and path.samefile(source):
        raise InvalidArgumentError(f"{path} is the file to export; give another name")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; pass overwrite=True (--force) to replace it")
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
    with _named_errors(path, total):
        _refuse_existing(path, source, overwrite=overwrite)
        _check_disk_space(path, total)
        part_path = path.with_name(path.name + ".part")
        with part_path.open("ab") as part:
            if not lock(part):
                raise OutputExistsError(f"{part_path} is being written by another process")
            try:
                _write_all(part, header, tensors, alignment, total, progress)
                _refuse_existing(path, source, overwrite=overwrite)
                if sys.platform == "win32":
                    part.close()  # an open file cannot be renamed; elsewhere it stays locked
                replace(part_path, path)
            except BaseException:
                if sys.platform == "win32":
                    part.close()
                with contextlib.suppress(OSError):
                    part_path.unlink(missing_ok=True)
                raise
            if not part.closed:
                leave_page_cache(part)
        fsync_folder(path.parent)
    if progress is not None:
        progress(total, total, "")
    return total


def _write_all(
    part: BinaryIO,
    header: bytes,
    tensors: Sequence[StreamedTensor],
    alignment: int,
    total: int,
    progress: Progress | None,
) -> None:
    part.truncate(0)
    part.write(header)
    done = len(header)
    for tensor in tensors:
        if progress is not None:
            progress(done, total, tensor.name)
        _write_tensor(part, tensor)
        part.write(bytes(-tensor.n_bytes % alignment))
        done += tensor.n_bytes + -tensor.n_bytes % alignment
    part.flush()
    os.fsync(part.fileno())


def _check_disk_space(path: Path, total: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise DiskSpaceError(
            f"{path.name} needs {total / 1e9:.2f} GB; only {free / 1e9:.2f} GB are free in "
            f"{path.parent}"
        )


def _write_tensor(part: BinaryIO, tensor: StreamedTensor) -> None:
    written = 0
    for chunk in tensor.chunks():
        view = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        part.write(view)
        written += len(view)
    if written != tensor.n_bytes:
        raise InvalidArgumentError(f"{tensor.name} has {written} bytes, not {tensor.n_bytes}")


@contextlib.contextmanager
def _named_errors(path: Path, total: int) -> Iterator[None]:
    try:
        yield
    except Llama2qError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise DiskSpaceError(
                f"the disk is full: {path.name} needs {total / 1e9:.2f} GB in {path.parent}; make "
                "room and export again"
            ) from error
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
