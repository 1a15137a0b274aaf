"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2q.errors import (
    DiskSpaceError,
    InvalidArgumentError,
    OutputError,
    OutputExistsError,
)
from llama2q.export.output_file import StreamedTensor, write_file
from llama2q.export.output_folder import new_folder
from llama2q.files import lock

Usage = namedtuple("Usage", "total used free")


def streamed(n_bytes: int, error: BaseException | None = None) -> StreamedTensor:
    """Two chunks, then perhaps an error."""

    def chunks() -> Iterator[Any]:
        yield np.ones(n_bytes // 2, np.uint8)
        if error is not None:
            raise error
        yield np.full(n_bytes - n_bytes // 2, 2, np.uint8)

    return StreamedTensor("t", n_bytes, chunks)


def left(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tensors_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = [streamed(5), streamed(8)]
    assert write_file(path, b"header!!", tensors, alignment=8) == 24
    assert path.read_bytes() == b"header!!\1\1\2\2\2\0\0\0\1\1\1\1\2\2\2\2"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad"), MemoryError()])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(type(error)):
        write_file(tmp_path / "x", b"", [streamed(9), streamed(9, error)], overwrite=True)
    assert left(tmp_path) == {"x": b"old"}


def test_a_tensor_of_another_size_is_an_error(tmp_path: Path) -> None:
    wrong = StreamedTensor("t", 4, lambda: iter([np.zeros(3, np.uint8)]))
    with pytest.raises(InvalidArgumentError, match="t has 3 bytes, not 4"):
        write_file(tmp_path / "x", b"", [wrong])
    assert left(tmp_path) == {}


def test_no_room_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 92, 8))
    assert write_file(tmp_path / "a", b"1", [streamed(7)]) == 8
    with pytest.raises(DiskSpaceError, match=r"x needs 0.00 GB; only 0.00 GB are free"):
        write_file(tmp_path / "x", b"1", [streamed(8)])
    assert list(left(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, DiskSpaceError), (errno.EIO, OutputError)]
)
def test_the_disk_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected, match="x"):
        write_file(tmp_path / "x", b"1", [streamed(8)])
    assert left(tmp_path) == {}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    with part.open("wb") as held:
        assert lock(held)
        held.write(b"theirs")
        held.flush()
        with pytest.raises(OutputExistsError, match="another process"):
            write_file(tmp_path / "x", b"1", [])
        assert part.read_bytes() == b"theirs"
    write_file(tmp_path / "x", b"1", [])
    assert left(tmp_path) == {"x": b"1"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def chunks() -> Iterator[Any]:
        (tmp_path / "x").write_bytes(b"new")
        yield np.zeros(1, np.uint8)

    with pytest.raises(OutputExistsError):
        write_file(tmp_path / "x", b"", [StreamedTensor("t", 1, chunks)])
    assert left(tmp_path) == {"x": b"new"}


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_file(tmp_path, b"", [], overwrite=True)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        write_file(tmp_path / "none" / "x", b"", [])
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / ("x" * 300), b"", [])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_folder_is_whole_or_absent(tmp_path: Path, error: BaseException) -> None:
    def fill(fail: Callable[[], None]) -> None:
        with new_folder(tmp_path / "x", ["a"], overwrite=True) as folder:
            (folder / "a").write_bytes(b"new")
            fail()

    def raise_error() -> None:
        raise error

    with pytest.raises(type(error)):
        fill(raise_error)
    assert list(tmp_path.iterdir()) == []
    fill(lambda: None)
    (tmp_path / "x" / "a").write_bytes(b"old")
    with pytest.raises(type(error)):
        fill(raise_error)
    assert left(tmp_path / "x") == {"a": b"old"}
    fill(lambda: None)
    assert left(tmp_path / "x") == {"a": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
