"""`SourceHasher` hashes files near to whoever converts them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama2q.converter import sources
from llama2q.converter.checklist import ListedFile
from llama2q.converter.sources import SourceHasher
from llama2q.errors import CancelledError, ChecksumError

CHUNK = 1000


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files of random bytes, in chunks of 1000; 2000 bytes ahead and 5000 behind."""
    monkeypatch.setattr(sources, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(sources, "_AHEAD_BYTES", 2 * CHUNK)
    monkeypatch.setattr(sources, "_BEHIND_BYTES", 5 * CHUNK)
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("a", 20_500), ("b", 19_999), ("c", 1)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(rng.bytes(size))
    return paths


def positions(hasher: SourceHasher) -> list[int]:
    return [file.position for file in hasher._files]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def expected(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_hashes(files: list[Path]) -> None:
    with SourceHasher(files) as hasher:
        assert hasher.result() == expected(files)


def test_it_stays_near(files: list[Path]) -> None:
    """Each file goes on to the share that is asked for, and a little ahead; not to the end."""
    with SourceHasher(files) as hasher:
        for share in (0.1, 0.5):
            hasher.follow(share)
            wait_for(lambda share=share: sum(positions(hasher)) >= 40_500 * share)  # type: ignore[misc]
            time.sleep(0.05)
            for found, path in zip(positions(hasher), files, strict=True):
                size = path.stat().st_size
                assert size * share <= found + 1
                assert found <= size * (share + 2 * CHUNK / 40_500) + CHUNK
        hasher.follow(0.2)  # a share never shrinks
        assert hasher.result() == expected(files)


def test_the_reader_waits_for_it(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    advance = sources._HashedFile.advance

    def slowly(self: sources._HashedFile, *arguments: object) -> None:
        time.sleep(0.01)
        advance(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sources._HashedFile, "advance", slowly)
    with SourceHasher(files) as hasher:
        hasher.follow(0.1)
        assert sum(positions(hasher)) < 10 * CHUNK
        hasher.follow(0.9)
        assert sum(positions(hasher)) >= 0.9 * 40_500 - 5 * CHUNK
        assert hasher.result() == expected(files)


def test_a_wrong_sum_is_found_and_nobody_waits(files: list[Path], tmp_path: Path) -> None:
    listed = {files[0]: ListedFile(files[0], "0" * 32, tmp_path / "checklist.chk")}
    with SourceHasher(files, listed) as hasher:
        hasher.follow(1.0)
        with pytest.raises(ChecksumError, match="a has the MD5"):
            hasher.result()
        hasher.follow(1.0)
        with pytest.raises(ChecksumError):
            hasher.check()


def test_leaving_stops_it(files: list[Path]) -> None:
    with SourceHasher(files) as hasher:
        wait_for(lambda: sum(positions(hasher)) > 0)
    assert sum(positions(hasher)) < 40_500
    with pytest.raises(CancelledError):
        hasher.check()


def test_a_file_beside_the_sources_is_compared_only(files: list[Path], tmp_path: Path) -> None:
    """It is no source, and has no hash."""
    digest = hashlib.md5(files[2].read_bytes()).hexdigest()
    listed = {files[2]: ListedFile(files[2], digest, tmp_path / "checklist.chk")}
    with SourceHasher(files[:2], listed) as hasher:
        assert hasher.result() == expected(files[:2])
