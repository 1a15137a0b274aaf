"""The files that a model was made from: their hashes and a quick fingerprint."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from llama2q.converter.checklist import ListedFile
from llama2q.errors import CancelledError
from llama2q.format.header import canonical_json

_CHUNK_BYTES = 4 * 1024 * 1024
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

    Parameters
    ----------
    paths : sequence of Path
        Hashed one after the other by SHA-256.
    listed : mapping of Path to ListedFile
        Files whose MD5 is compared, among `paths` or others.
    """

    def __init__(
        self, paths: Sequence[Path], listed: Mapping[Path, ListedFile] | None = None
    ) -> None:
        self._paths = tuple(paths)
        self._listed = dict(listed or {})
        self._all = (*paths, *(path for path in self._listed if path not in set(paths)))
        self._stop = threading.Event()
        self._hashes: dict[str, str] = {}
        self._error: Exception | None = None
        self._current = ""
        self._done_bytes = 0
        self._total_bytes = sum(path.stat().st_size for path in self._all)
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
        # A join without a timeout cannot be interrupted on every system.
        while self._thread.is_alive():
            self._thread.join(0.2)
            if progress is not None and self._thread.is_alive():
                percent = 100 * self._done_bytes // max(1, self._total_bytes)
                progress(f"checking {self._current} ({percent} % of the source)")
        self.check()
        return self._hashes

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
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(1, "source-md5") as beside:
                for path in self._all:
                    self._current = path.name
                    self._read(path, beside)
        except Exception as error:
            self._error = error

    def _read(self, path: Path, beside: ThreadPoolExecutor) -> None:
        """Hash a file chunk by chunk, the MD5 of a chunk in the thread beside."""
        listed = self._listed.get(path)
        sha256 = hashlib.sha256()
        # The list is no protection against an attacker, who could change it too.
        md5 = hashlib.md5(usedforsecurity=False)
        buffer = bytearray(_CHUNK_BYTES)
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                chunk = memoryview(buffer)[:size]
                pending = beside.submit(md5.update, chunk) if listed is not None else None
                if path in self._paths:
                    sha256.update(chunk)
                if pending is not None:
                    pending.result()
                self._done_bytes += size
                if self._stop.is_set():
                    raise CancelledError("hashing the source was cancelled")
        if listed is not None:
            listed.check(md5.hexdigest())
        if path in self._paths:
            self._hashes[path.name] = sha256.hexdigest()
