"""Logits in a temporary file, for what must see them twice."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.errors import DiskSpaceError


class StoredLogits(Closing):
    """Rows written once, one after the other, and read again in that order. A context manager.

    The file lies in $TMPDIR, else in /var/tmp where there is one, for /tmp is often memory. It has
    no name where the system can do without, and goes with the process however that ends.
    """

    def __init__(self, n_bytes: int) -> None:
        """Make the file.

        Parameters
        ----------
        n_bytes : int
            What it will hold.

        Raises
        ------
        DiskSpaceError
            If there is no room for it.
        """
        self._n_bytes = n_bytes
        self._folder = temp_folder()
        free = shutil.disk_usage(self._folder).free
        if free < n_bytes:
            raise DiskSpaceError(
                f"the reference's logits need {n_bytes / 1e9:.2f} GB; only {free / 1e9:.2f} GB are "
                f"free in {self._folder}: make room, or set TMPDIR to another folder"
            )
        self._file = tempfile.TemporaryFile(dir=self._folder)
        self._row_shape: tuple[int, ...] = ()

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # what a full disk could not take is not missed here
            self._file.close()

    def append(self, rows: NDArray[np.float32]) -> None:
        """Write rows behind those that are there: float32, (n, vocab_size).

        Raises
        ------
        DiskSpaceError
            If the disk is full.
        """
        self._row_shape = rows.shape[1:]
        with self._named_errors():
            self._file.write(np.ascontiguousarray(rows).data)

    def rewind(self) -> None:
        """Read from the first row on."""
        with self._named_errors():
            self._file.seek(0)

    def read(self, n_rows: int) -> NDArray[np.float32]:
        """Return the next rows: float32, (n_rows, vocab_size)."""
        rows = np.empty((n_rows, *self._row_shape), np.float32)
        n_read = self._file.readinto(rows.data.cast("B"))
        if n_read != rows.nbytes:
            raise EOFError(f"{n_read} of {rows.nbytes} bytes are left in the temporary file")
        return rows

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise
            raise DiskSpaceError(
                f"the disk is full: the reference's logits need {self._n_bytes / 1e9:.2f} GB in "
                f"{self._folder}; make room, or set TMPDIR to another folder"
            ) from error


def temp_folder() -> Path:
    """Return the folder of large temporary files."""
    on_disk = Path("/var/tmp")
    if "TMPDIR" not in os.environ and on_disk.is_dir() and os.access(on_disk, os.W_OK):
        return on_disk
    return Path(tempfile.gettempdir())
