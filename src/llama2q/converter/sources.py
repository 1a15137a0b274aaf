"""The files that a model was made from: their hashes and a quick fingerprint."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from llama2q.converter.checklist import ListedFile
from llama2q.errors import CancelledError
from llama2q.files import will_need
from llama2q.format.header import canonical_json

_CHUNK_BYTES = 4 * 1024 * 1024
_READ_AHEAD_BYTES = 4 * _CHUNK_BYTES
_AHEAD_BYTES = 256 * 1024 * 1024
_BEHIND_BYTES = 1024 * 1024 * 1024
"""How far hashing and converting may be apart: what the system should be able to keep in memory."""
_TAIL_BYTES = 1024 * 1024


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a short text that changes when a file does, without reading it all.

    It covers names, sizes, modification times and the last MiB of each file, where a shard's zip
    directory has the CRC-32 of every tensor.
    """
    entries = []
    for path in paths:
        status = path.stat()
        with path.open("rb") as file:
            file.seek(max(0, status.st_size - _TAIL_BYTES))
            tail = hashlib.sha256(file.read()).hexdigest()
        entries.append([path.name, status.st_size, status.st_mtime_ns, tail])
    return canonical_json(entries)


class SourceHasher:
    """Reads files once in the background, for SHA-256 and for MD5. A context manager.

    It keeps near to whoever converts the same files: what one of the two reads from the disk the
    other finds in memory, however large the files are.

    Parameters
    ----------
    paths : sequence of Path
        Hashed by SHA-256.
    listed : mapping of Path to ListedFile
        Files whose MD5 is compared, among `paths` or others.
    """

    def __init__(
        self, paths: Sequence[Path], listed: Mapping[Path, ListedFile] | None = None
    ) -> None:
        listed = dict(listed or {})
        names = set(paths)
        others = (path for path in listed if path not in names)
        self._files = [
            _HashedFile(path, listed.get(path), named=path in names) for path in (*paths, *others)
        ]
        self._total_bytes = sum(file.size for file in self._files)
        self._share = 0.0
        self._stopped = False
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._current = ""
        self._thread = threading.Thread(target=self._run, name="source-hashes", daemon=True)

    def check(self) -> None:
        """Raise what has been found so far; does not wait.

        Raises
        ------
        ChecksumError
            A file's MD5 is not the listed one.
        """
        if self._error is not None:
            raise self._error

    def follow(self, share: float) -> None:
        """Hash every file up to about this share of its bytes; wait only while far behind it.

        Parameters
        ----------
        share : float
            How much of the sources, 0 to 1, has been converted or is next.
        """
        self._go_on(share)
        while self._thread.is_alive() and self._bytes_behind() > _BEHIND_BYTES:
            with self._changed:
                self._changed.wait(0.2)  # without a timeout it cannot be interrupted everywhere

    def result(self, progress: Callable[[str], None] | None = None) -> dict[str, str]:
        """Wait for the hashes and return them: file name -> 64 hex digits.

        Parameters
        ----------
        progress : callable, optional
            Called a few times a second with a text that says how far it is.

        Raises
        ------
        ChecksumError
            A file's MD5 is not the listed one.
        """
        self._go_on(1.0)
        # A join without a timeout cannot be interrupted on every system.
        while self._thread.is_alive():
            self._thread.join(0.2)
            if progress is not None and self._thread.is_alive():
                done_bytes = sum(file.position for file in self._files)
                percent = 100 * done_bytes // max(1, self._total_bytes)
                progress(f"checking {self._current} ({percent} % of the source)")
        self.check()
        return {file.path.name: file.hash for file in self._files if file.hash}

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _go_on(self, share: float) -> None:
        with self._changed:
            self._share = max(self._share, share)
            self._changed.notify_all()

    def _bytes_behind(self) -> float:
        return sum(max(0.0, self._share * file.size - file.position) for file in self._files)

    def _run(self) -> None:
        buffer = bytearray(_CHUNK_BYTES)
        try:
            with ThreadPoolExecutor(1, "source-md5") as beside, ExitStack() as stack:
                for file in self._files:
                    stack.enter_context(file)
                while (next_file := self._next()) is not None:
                    self._current = next_file.path.name
                    next_file.advance(buffer, beside)
                    with self._changed:
                        self._changed.notify_all()
        except Exception as error:
            self._error = error

    def _next(self) -> _HashedFile | None:
        """Wait until a file is to be read further and return it; None when all are done."""
        with self._changed:
            while True:
                if self._stopped:
                    raise CancelledError("hashing the source was cancelled")
                unfinished = [file for file in self._files if not file.is_finished]
                if not unfinished or self._share >= 1.0:
                    return unfinished[0] if unfinished else None
                share = self._share + _AHEAD_BYTES / max(1, self._total_bytes)
                for file in unfinished:
                    if file.position <= share * file.size:
                        return file
                self._changed.wait()


class _HashedFile:
    """A file that is hashed bit by bit. A context manager."""

    def __init__(self, path: Path, listed: ListedFile | None, *, named: bool) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.position = 0
        self.is_finished = False
        self.hash = ""
        self._listed = listed
        self._sha256 = hashlib.sha256() if named else None
        # The list is no protection against an attacker, who could change it too.
        self._md5 = hashlib.md5(usedforsecurity=False) if listed is not None else None

    def advance(self, buffer: bytearray, beside: ThreadPoolExecutor) -> None:
        """Hash the next chunk, its MD5 in the thread beside; at the end, compare."""
        size = self._file.readinto(buffer)
        if not size:
            self._finish()
            return
        will_need(self._file, self.position + size, _READ_AHEAD_BYTES)
        chunk = memoryview(buffer)[:size]
        pending = None if self._md5 is None else beside.submit(self._md5.update, chunk)
        if self._sha256 is not None:
            self._sha256.update(chunk)
        if pending is not None:
            pending.result()
        self.position += size

    def _finish(self) -> None:
        if self._listed is not None and self._md5 is not None:
            self._listed.check(self._md5.hexdigest())
        if self._sha256 is not None:
            self.hash = self._sha256.hexdigest()
        self.is_finished = True

    def __enter__(self) -> Self:
        self._file = self.path.open("rb", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
