"""Logits in a temporary file: what is read, where it lies, that it goes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2q.errors import DiskSpaceError
from llama2q.evaluate.stored_logits import StoredLogits, temp_folder


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    rows[3, 3] = -0.0
    with StoredLogits(rows.nbytes) as stored:
        stored.append(rows[:4])
        stored.append(rows[::2][2:])  # not contiguous
        for _ in range(2):
            stored.rewind()
            np.testing.assert_array_equal(stored.read(3), rows[:3])
            found = stored.read(1)
            assert found.dtype == np.float32
            assert np.signbit(found[0, 3])
            np.testing.assert_array_equal(stored.read(3), rows[4::2])
        with pytest.raises(EOFError, match="0 of 28 bytes"):
            stored.read(1)
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 0, 10**9))
    with pytest.raises(DiskSpaceError, match=r"need 2\.00 GB; only 1\.00 GB are free .* TMPDIR"):
        StoredLogits(2 * 10**9)
    assert list(tmp_path.iterdir()) == []


class _FullDisk:
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def seek(self, to: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_disk_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: _FullDisk())
    with StoredLogits(12) as stored:
        with pytest.raises(DiskSpaceError, match="the disk is full"):
            stored.append(np.zeros((1, 3), np.float32))
        with pytest.raises(OSError, match="Input/output error"):
            stored.rewind()


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert temp_folder() == tmp_path
    monkeypatch.delenv("TMPDIR")
    expected = Path("/var/tmp")
    if not (expected.is_dir() and os.access(expected, os.W_OK)):
        expected = Path(tempfile.gettempdir())
    assert temp_folder() == expected
