"""The files that a model was made from: their hashes and a quick fingerprint."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

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
    """Computes SHA-256 of files in a background thread. A context manager.

    Parameters
    ----------
    paths : sequence of Path
        Hashed one after the other.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._stop = threading.Event()
        self._hashes: dict[str, str] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="source-hashes", daemon=True)

    def result(self) -> dict[str, str]:
        """Wait for the hashes and return them: file name -> 64 hex digits."""
        # A join without a timeout cannot be interrupted on every system.
        while self._thread.is_alive():
            self._thread.join(0.2)
        if self._error is not None:
            raise self._error
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
            for path in self._paths:
                self._hashes[path.name] = self._hash(path)
        except Exception as error:
            self._error = error

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK_BYTES)
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
                if self._stop.is_set():
                    raise CancelledError("hashing the source was cancelled")
        return digest.hexdigest()
