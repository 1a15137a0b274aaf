"""What systems do in their own way with files; what Windows refuses is played here."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from l2q_files import StopAt, journal_of, part_of, run, write_small
from llama2q import files
from llama2q.errors import FileInUseError, OutputError, OutputExistsError


class WindowsError(PermissionError):
    """What Windows raises: on other systems the class has no code of its own."""

    def __init__(self, winerror: int) -> None:
        super().__init__(13, "Access is denied")
        self.winerror = winerror


@contextmanager
def in_use(path: Path, winerror: int, times: int = 1000, early: bool = False) -> Iterator[None]:
    """Refuse to give this name to another file, and if `early` also to rename the file."""
    real_replace, real_rename = Path.replace, Path.rename
    left = times

    def replace(source: Path, target: Path) -> Path:
        nonlocal left
        if target == path and left:
            left -= 1
            raise WindowsError(winerror)
        return real_replace(source, target)

    def rename(source: Path, target: Path) -> Path:
        if early and source == path:
            raise WindowsError(winerror)
        return real_rename(source, target)

    with (
        mock.patch.object(Path, "replace", replace),
        mock.patch.object(Path, "rename", rename),
        mock.patch.object(files, "_SECONDS_BETWEEN", 0.0),
    ):
        yield


def two(folder: Path) -> tuple[Path, Path]:
    source, target = folder / "new", folder / "old"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    return source, target


@pytest.mark.parametrize("winerror", [5, 32, 33, 1224])
def test_a_file_in_use_is_named(tmp_path: Path, winerror: int) -> None:
    source, target = two(tmp_path)
    with in_use(target, winerror), pytest.raises(FileInUseError) as caught:
        files.replace(source, target)
    assert f"{target} cannot be replaced while a program uses it (ERROR_" in str(caught.value)
    assert f"the new content is in {source}" in str(caught.value)
    assert (source.read_bytes(), target.read_bytes()) == (b"new", b"old")
    with in_use(target, winerror, early=True), pytest.raises(FileInUseError, match="another name"):
        files.require_replaceable(target)


def test_a_scanner_lets_go_in_time(tmp_path: Path) -> None:
    source, target = two(tmp_path)
    with in_use(target, 32, times=9):
        files.replace(source, target)
    assert target.read_bytes() == b"new"
    assert not source.exists()


def test_other_refusals_stay_what_they_are(tmp_path: Path) -> None:
    source, target = two(tmp_path)
    with in_use(target, 19), pytest.raises(WindowsError):
        files.replace(source, target)
    with pytest.raises(FileNotFoundError):
        files.replace(tmp_path / "absent", target)
    files.require_replaceable(target)
    files.require_replaceable(tmp_path / "absent")
    assert target.read_bytes() == b"old"


def test_a_private_file_appears_whole(tmp_path: Path) -> None:
    path, part = tmp_path / "a", tmp_path / "a.part"
    part.write_bytes(b"of a writer that was killed")
    part.chmod(0o644)
    with files.private_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert not part.exists()
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_private_file_that_cannot_be_named_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with in_use(path, 32), pytest.raises(FileInUseError, match=r"the new content is in .*a\.part"):
        with files.private_file(path) as file:
            file.write(b"new")
    assert (path.read_bytes(), (tmp_path / "a.part").read_bytes()) == (b"old", b"new")


def test_a_private_file_replaces_files_only(tmp_path: Path) -> None:
    for taken in (tmp_path, Path(os.devnull)):
        with pytest.raises(FileExistsError, match="is no file"), files.private_file(taken):
            pytest.fail("it should not be opened")


@pytest.mark.parametrize("fingerprint", ["f", ""])
def test_nothing_is_lost_when_the_model_is_in_use(tmp_path: Path, fingerprint: str) -> None:
    path, expected = tmp_path / "x.l2q", tmp_path / "expected.l2q"
    write_small(expected)
    path.write_bytes(b"loaded by another program")
    with in_use(path, 5), pytest.raises(FileInUseError, match=r"x\.l2q cannot be replaced"):
        run(path, StopAt(-1), fingerprint=fingerprint)
    assert path.read_bytes() == b"loaded by another program"
    assert part_of(path).read_bytes() == expected.read_bytes()
    assert journal_of(path).exists()
    again = StopAt(-1)
    run(path, again, fingerprint=fingerprint)
    assert path.read_bytes() == expected.read_bytes()
    assert again.encoded == (0 if fingerprint else 14)
    assert {p.name for p in tmp_path.iterdir()} == {"x.l2q", "expected.l2q"}


def test_a_model_in_use_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"old")
    stop = StopAt(-1)
    with in_use(path, 32, early=True), pytest.raises(FileInUseError, match="ERROR_SHARING"):
        run(path, stop)
    assert stop.encoded == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


def test_a_journal_in_use_loses_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    with pytest.raises(KeyboardInterrupt):
        run(path, StopAt(9, KeyboardInterrupt()))
    with in_use(journal_of(path), 32), pytest.raises(FileInUseError):
        run(path, StopAt(-1))
    last = StopAt(-1)
    run(path, last)
    assert last.encoded == 8


def test_lock_by_a_byte(tmp_path: Path) -> None:
    """As on Windows: at a fixed place, and the file stays where it was."""
    path = tmp_path / "x.l2q.part"
    path.write_bytes(b"content")
    with path.open("r+b", buffering=0) as file:
        file.seek(3)
        places: list[int] = []
        assert files.take_byte(file, lambda: places.append(file.tell()))
        assert places == [2**31 - 2]
        assert file.read() == b"tent"

        def refuse() -> None:
            raise PermissionError(13, "Permission denied")

        assert not files.take_byte(file, refuse)
        assert path.read_bytes() == b"content"


def test_a_locked_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    with (
        mock.patch("llama2q.format.writer.lock", return_value=False),
        pytest.raises(OutputExistsError, match="is being written by another process"),
    ):
        run(path, StopAt(-1))


def test_no_directory_to_sync(tmp_path: Path) -> None:
    files.fsync_folder(tmp_path)
    with mock.patch.object(files.sys, "platform", "win32"):
        files.fsync_folder(tmp_path / "absent")


def test_a_full_disk_is_no_file_in_use(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"old")
    with in_use(path, 19), pytest.raises(OutputError, match="cannot be written: Access is denied"):
        run(path, StopAt(-1))
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


def test_advice_is_only_advice(tmp_path: Path) -> None:
    """What a system or a kind of file does not know is no error, and content stays as it is."""
    path = tmp_path / "x"
    with path.open("w+b") as file:
        file.write(b"content")
        file.flush()
        files.start_writing(file, 0, 7)
        files.will_need(file, 0, 1 << 40)
        file.seek(0)
        assert file.read() == b"content"
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as end, os.fdopen(writing, "wb"):
        files.will_need(end, 0, 1)
        files.start_writing(end, 0, 1)
