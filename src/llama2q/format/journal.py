"""The journal of an unfinished file: which tensors of `NAME.part` are complete."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llama2q.files import replace
from llama2q.format.header import canonical_json
from llama2q.format.layout import PlacedTensor

_CHUNK_BYTES = 8 * 1024 * 1024


class Journal:
    """A text file: one line with the key, then one line per finished tensor.

    A tensor's line is written after its bytes. Bytes and lines may reach the disk in any order
    (a power cut), so `resume` believes a line only if the bytes have its hash; a line that was cut
    off, and all after it, are ignored.

    Parameters
    ----------
    path : Path
        Usually `NAME.part.journal`.
    key : str
        Names the sources and the recipe; a journal with another key is worthless.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._fresh = path.with_name(path.name + ".new")
        self._key = key
        self._file: BinaryIO | None = None

    def resume(
        self, part: BinaryIO, data_start: int, expected: Sequence[PlacedTensor]
    ) -> dict[str, str]:
        """Return the hashes of finished tensors by name, a prefix of `expected`.

        Parameters
        ----------
        part : binary file
            `NAME.part`, readable.
        data_start : int
            Bytes before the data section.
        expected : sequence of PlacedTensor
            The tensors of the file without pads, in order.
        """
        finished: dict[str, str] = {}
        for tensor, sha256 in self.claimed(expected):
            if _hash(part, data_start, tensor) != sha256:
                break
            finished[tensor.spec.name] = sha256
        return finished

    def claimed(self, expected: Sequence[PlacedTensor]) -> Iterator[tuple[PlacedTensor, str]]:
        """Yield the tensors that the journal calls finished, and their hashes; reads no data."""
        for tensor, line in zip(expected, self._lines(), strict=False):
            sha256 = line.get("sha256", "")
            if line != self._line(tensor, sha256):
                return
            yield tensor, sha256

    def start(self, expected: Sequence[PlacedTensor], finished: dict[str, str]) -> None:
        """Begin a new journal that names the tensors finished so far."""
        self.close()
        with self._fresh.open("wb") as file:
            file.write(self._encode({"key": self._key}))
            for tensor in expected[: len(finished)]:
                file.write(self._encode(self._line(tensor, finished[tensor.spec.name])))
        replace(self._fresh, self.path)
        self._file = self.path.open("ab", buffering=0)

    def add(self, tensor: PlacedTensor, sha256: str) -> None:
        """Note that a tensor's bytes are complete."""
        if self._file is not None:
            write_all(self._file, memoryview(self._encode(self._line(tensor, sha256))))

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self._fresh.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        """Parse complete lines after the key's; none if the key differs."""
        try:
            *complete, _ = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        lines: list[dict[str, Any]] = []
        for text in complete:
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict):
                break
            lines.append(line)
        if not lines or lines[0] != {"key": self._key}:
            return []
        return lines[1:]

    @staticmethod
    def _line(tensor: PlacedTensor, sha256: str) -> dict[str, Any]:
        return {
            "name": tensor.spec.name,
            "begin": tensor.begin,
            "end": tensor.end,
            "sha256": sha256,
        }

    @staticmethod
    def _encode(line: dict[str, Any]) -> bytes:
        return canonical_json(line).encode("ascii") + b"\n"


def write_all(file: BinaryIO, view: memoryview) -> None:
    """Write all bytes to an unbuffered file, which may take fewer at a time."""
    while len(view):
        written = file.write(view)
        if not written:
            raise OSError(errno.EIO, "the system took no bytes")
        view = view[written:]


def _hash(part: BinaryIO, data_start: int, tensor: PlacedTensor) -> str:
    digest = hashlib.sha256()
    part.seek(data_start + tensor.begin)
    left = tensor.end - tensor.begin
    while left and (chunk := part.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest() if not left else ""
