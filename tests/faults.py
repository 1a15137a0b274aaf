"""A hook into everything the writer asks of the file system, and faults to put there."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from llama2q.format import writer as writer_module

Hook = Callable[[str], None]
"""Called with the name of each operation, just before it is done."""


class HookedFile:
    """A file whose writes and truncations are announced; a write is done in two halves."""

    def __init__(self, file: Any, name: str, hook: Hook) -> None:
        self._file = file
        self._name = name
        self._hook = hook

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        self._hook(f"write {self._name}")
        written = 0
        if half:
            written = int(self._file.write(view[:half]))
            if written < half:
                return written
            self._hook(f"write {self._name}, second half")
        return written + int(self._file.write(view[half:]))

    def truncate(self, size: int) -> int:
        self._hook(f"truncate {self._name}")
        return int(self._file.truncate(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> HookedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def kind_of(path: Path) -> str:
    """Name a file of the output by its role."""
    for ending, kind in ((".part.journal.new", "new journal"), (".journal", "journal")):
        if path.name.endswith(ending):
            return kind
    return "part" if path.name.endswith(".part") else "file"


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Announce every change that a writer makes to the file system."""
    real_open, real_path_open = builtins.open, Path.open
    real_fsync, real_replace, real_unlink = os.fsync, Path.replace, Path.unlink

    def open_part(*arguments: Any, **options: Any) -> HookedFile:
        return HookedFile(real_open(*arguments, **options), "part", hook)

    def path_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if kind_of(path) == "file" or "r" in mode:
            return real_path_open(path, mode, *arguments, **options)
        hook(f"open {kind_of(path)}")
        return HookedFile(real_path_open(path, mode, *arguments, **options), kind_of(path), hook)

    def fsync(descriptor: int) -> None:
        hook("fsync")
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        hook(f"rename {kind_of(path)}")
        return real_replace(path, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        hook(f"unlink {kind_of(path)}")
        real_unlink(path, missing_ok=missing_ok)

    with (
        mock.patch.object(writer_module, "open", open_part, create=True),
        mock.patch.object(Path, "open", path_open),
        mock.patch.object(os, "fsync", fsync),
        mock.patch.object(Path, "replace", replace),
        mock.patch.object(Path, "unlink", unlink),
    ):
        yield


class At:
    """Does something at the n-th operation; `operations` lists all that came."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number = number
        self.action = action
        self.operations: list[str] = []

    def __call__(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) == self.number:
            self.action()


def kill() -> None:
    """End this process as a power cut or the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number: int) -> Callable[[], None]:
    """Return an action that fails with this errno."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail
