"""Killed, or refused by the system at any step: no half file, and the next run goes on."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from converter.pth_files import small_checkpoint
from faults import At, failing, hooked
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.errors import DiskSpaceError, OutputError
from llama2q.format import writer as writer_module
from synthetic_shapes import SyntheticShape

TESTS = Path(__file__).resolve().parents[1]
TINY = SyntheticShape(dim=8, n_layers=1, n_heads=2, multiple_of=8, vocab_size=4096)
COMMAND = "from llama2q.cli.convert import main; main()"
posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, mini_checkpoint: Path) -> Path:
    """One layer, so that there are few steps."""
    generator = np.random.default_rng(3)
    tensors = {
        name: generator.integers(0, 0x4000, shape, dtype=np.uint16)
        for name, shape in tensor_shapes(TINY.config).items()
    }
    return small_checkpoint(
        tmp_path_factory.mktemp("tiny"),
        mini_checkpoint / "tokenizer.model",
        tensors=tensors,
        params=TINY.params,
    )


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x.l2q"
    llama2q.convert(tiny, path)
    return path.read_bytes()


def interrupt(checkpoint: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the interrupter, a process without threads, and return what it found."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "interrupter", str(checkpoint), str(folder), *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@posix
def test_killed_at_some_boundaries(tiny: Path, tmp_path: Path) -> None:
    found = interrupt(tiny, tmp_path, "boundaries", "7")
    assert found["faults"] == {}
    assert found["operations"] > 80


@posix
@pytest.mark.slow
def test_killed_at_every_boundary(tiny: Path, tmp_path: Path) -> None:
    """Before every write, half of a write, truncation, fsync, rename and removal."""
    found = interrupt(tiny, tmp_path, "boundaries", "1")
    assert found["faults"] == {}
    assert found["operations"] > 80


@posix
def test_killed_at_random_moments(tiny: Path, tmp_path: Path) -> None:
    assert interrupt(tiny, tmp_path, "moments", "12", "1")["faults"] == {}


@posix
@pytest.mark.slow
def test_killed_at_300_random_moments(mini_checkpoint: Path, tmp_path: Path) -> None:
    found = interrupt(mini_checkpoint, tmp_path, "moments", "300", "2")
    assert found["faults"] == {}
    assert found["kills"] >= 300


def operations(tiny: Path, folder: Path) -> list[str]:
    """Name what a whole conversion does to the file system."""
    at = At(0, lambda: None)
    with hooked(at):
        llama2q.convert(tiny, folder / "x.l2q", overwrite=True)
    return at.operations


def test_operations(tiny: Path, tmp_path: Path) -> None:
    """The order that safety rests on: bytes, fsync, rename, fsync of the folder."""
    found = operations(tiny, tmp_path)
    n_tensors = found.count("write journal")
    assert (
        n_tensors == len(tensor_shapes(TINY.config)) + 8 + 2 - 1
    )  # scales, rope, tokenizer, w1_w3
    removals = ["unlink new journal", "unlink journal"]
    assert found[-5:] == ["fsync", "rename part", *removals, "fsync"]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, DiskSpaceError),
        (errno.EIO, OutputError),
        (errno.EROFS, OutputError),
        (errno.EDQUOT, DiskSpaceError),
    ],
)
def test_a_failure_at_every_step(
    tiny: Path, whole: bytes, tmp_path: Path, number: int, error: type[OSError]
) -> None:
    """Every operation fails in its turn: a named error, nothing left, the next run is whole."""
    steps = operations(tiny, tmp_path)
    path = tmp_path / "x.l2q"
    path.unlink()
    every = range(1, len(steps) + 1)
    # All kinds of operation once for each errno, every single one for the first.
    chosen = every if number == errno.ENOSPC else [1 + steps.index(kind) for kind in set(steps)]
    for step in chosen:
        with hooked(At(step, failing(number))), pytest.raises(error) as caught:
            llama2q.convert(tiny, path)
        assert type(caught.value) is error
        assert path.name in str(caught.value)
        left = {place.name for place in tmp_path.iterdir()}
        if steps[step - 1 :].count("rename part") == 0:  # it failed after the rename
            assert path.read_bytes() == whole
            assert left == {"x.l2q"}
            path.unlink()
        else:
            assert left == set(), steps[step - 1]
    llama2q.convert(tiny, path)
    assert path.read_bytes() == whole


def test_an_old_file_survives_every_failure(tiny: Path, whole: bytes, tmp_path: Path) -> None:
    steps = operations(tiny, tmp_path)
    path = tmp_path / "x.l2q"
    for kind in set(steps):
        path.write_bytes(b"old")
        with hooked(At(1 + steps.index(kind), failing(errno.EIO))), pytest.raises(OutputError):
            llama2q.convert(tiny, path, overwrite=True)
        assert path.read_bytes() in (b"old", whole)
        assert [place.name for place in tmp_path.iterdir()] == ["x.l2q"]


def test_a_disk_that_stays_broken(tiny: Path, tmp_path: Path) -> None:
    """Removing what is unfinished fails too: the first error is the one that is raised."""
    steps = operations(tiny, tmp_path)
    path = tmp_path / "x.l2q"
    path.unlink()
    count = 0

    def hook(operation: str) -> None:
        nonlocal count
        count += 1
        if count >= len(steps) // 2:
            raise OSError(errno.EIO, f"{operation} refused")

    with hooked(hook), pytest.raises(OutputError, match=r"write \w+(, second half)? refused"):
        llama2q.convert(tiny, path)
    assert not path.exists()
    llama2q.convert(tiny, path)


def shortened(take: Callable[[int], int]) -> Callable[..., Any]:
    """Return an `open` whose files take only so many bytes at a time."""

    class Short:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            return int(self._file.write(memoryview(data)[: take(len(data))]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    return lambda *arguments, **options: Short(open(*arguments, **options))  # noqa: PTH123


def test_short_writes(
    tiny: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    take = lambda size: int(generator.integers(1, size + 1))  # noqa: E731
    monkeypatch.setattr(writer_module, "open", shortened(take), raising=False)
    llama2q.convert(tiny, tmp_path / "x.l2q")
    assert (tmp_path / "x.l2q").read_bytes() == whole


def test_writes_that_take_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "open", shortened(lambda size: 0), raising=False)
    with pytest.raises(OutputError, match="took no bytes"):
        llama2q.convert(tiny, tmp_path / "x.l2q")
    assert list(tmp_path.iterdir()) == []


class Stop:
    """A progress callback that interrupts at the n-th call."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, done: int, total: int, name: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("resume", [True, False])
def test_resume_can_be_refused(tiny: Path, whole: bytes, tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "x.l2q"
    with pytest.raises(KeyboardInterrupt):
        llama2q.convert(tiny, path, progress=Stop(7))
    at = At(0, lambda: None)
    with hooked(at):
        llama2q.convert(tiny, path, resume=resume)
    written, total = at.operations.count("write journal"), operations(tiny, tmp_path)
    assert (written == total.count("write journal")) is not resume
    assert path.read_bytes() == whole


def test_resume_options_of_the_command(tiny: Path, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    for option in ([], ["--resume"], ["--no-resume"]):
        with pytest.raises(KeyboardInterrupt):
            llama2q.convert(tiny, path, progress=Stop(7))
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(tiny), "-o", str(path), "-v", *option],
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("going on after" in done.stderr) is (option != ["--no-resume"])
        assert path.read_bytes() == whole
        path.unlink()


def has_room(file: Any) -> bool:
    try:
        return bool(file.write(bytes(4096)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of that many KiB in memory."""
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs, which is Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(kib: int) -> Path:
        nonlocal mounted
        options = f"size={kib}k".encode()
        if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options) != 0:
            pytest.skip(f"mounting a tmpfs is refused: {os.strerror(ctypes.get_errno())}")
        mounted = True
        return place

    yield mount
    if mounted:
        libc.umount2(os.fsencode(place), 2)


def test_a_disk_that_is_too_small(
    tiny: Path, whole: bytes, small_disk: Callable[[int], Path]
) -> None:
    """It is refused before anything is written."""
    disk = small_disk(len(whole) // 1024 - 8)
    at = At(0, lambda: None)
    with hooked(at), pytest.raises(DiskSpaceError, match=r"GB are free"):
        llama2q.convert(tiny, disk / "x.l2q")
    assert at.operations == []
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up(
    tiny: Path,
    whole: bytes,
    small_disk: Callable[[int], Path],
) -> None:
    """Another program takes the room after the check; the system's own ENOSPC."""
    disk = small_disk(len(whole) // 1024 + 64)
    other = disk / "other"
    taken = False

    def take(done: int, total: int, name: str) -> None:
        nonlocal taken
        if done > total // 3 and not taken:
            taken = True
            with other.open("wb", buffering=0) as file:
                while has_room(file):
                    pass

    with pytest.raises(DiskSpaceError, match="the disk is full"):
        llama2q.convert(tiny, disk / "x.l2q", progress=take)
    assert [place.name for place in disk.iterdir()] == ["other"]
    other.unlink()
    llama2q.convert(tiny, disk / "x.l2q")
    assert (disk / "x.l2q").read_bytes() == whole
