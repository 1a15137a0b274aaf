"""The checkpoint's tensors, read while other threads check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.converter.checklist import ListedFile
from llama2q.converter.forms import Checkpoint
from llama2q.converter.hub_cache import check_blobs
from llama2q.converter.sources import SourceHasher


class CheckedSource(Closing):
    """Reads tensors while other threads check them.

    By the MD5 of whole files where a checklist has it, by the CRC-32 of the tensors elsewhere; by
    the SHA-256 of files that are named by it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        hasher: SourceHasher,
        listed: Mapping[Path, ListedFile],
        blobs: Mapping[str, str],
    ) -> None:
        self._checkpoint = checkpoint
        self._hasher = hasher
        self._listed = listed
        self._blobs = blobs
        self._pool = ThreadPoolExecutor(1, "source-crc")
        self._checks: dict[str, Future[None]] = {}

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor and start its check."""
        self._checks[name] = self._pool.submit(self._checkpoint.check_crc, name, self._listed)
        return self._checkpoint.read(name)

    def release(self, name: str) -> None:
        """Wait for a tensor's check, then give its pages back."""
        self._checks.pop(name).result()
        self._checkpoint.release(name)

    def follow(self, share: float) -> None:
        """Say how much of the model is converted with the next part, 0 to 1."""
        self._hasher.follow(share)

    def check(self) -> None:
        """Raise a ChecksumError that has been found so far; does not wait."""
        self._hasher.check()

    def finish(self, progress: Callable[[str], None] | None = None) -> dict[str, str]:
        """Wait for all checks; raise the first CorruptShardError or ChecksumError.

        Returns
        -------
        dict
            Names of the source files -> SHA-256, 64 hex digits.
        """
        for check in self._checks.values():
            check.result()
        hashes = self._hasher.result(progress)
        check_blobs(self._blobs, hashes)
        return hashes

    def close(self) -> None:
        """Wait for the check that is running."""
        self._pool.shutdown(cancel_futures=True)
