"""The writer: atomic, resumable, and strict about what it is given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l2q_files import StopAt, journal_of, metadata, norm, part_of, run, write_small
from llama2q.errors import DiskSpaceError, HeaderError, InvalidArgumentError, OutputExistsError
from llama2q.format import L2qFile, Recipe, Writer
from llama2q.format.metadata import ATTRIBUTION, Metadata, SourceFile
from llama2q.format.writer import write_model
from numpy_quantizers import SMALL, TOKENIZER, encode_random

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x.l2q"
    write_small(path)
    return path.read_bytes()


def test_nothing_but_the_file_is_left(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.l2q"
    run(path, StopAt(-1))
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["x.l2q"]  # noqa: PTH208


def test_an_error_removes_the_part_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"):
        run(path, StopAt(5, RuntimeError("stop")))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


def test_leaving_without_finish_is_an_error_too(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.l2q", metadata(), TOKENIZER, fingerprint="f"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_kill_right_after_the_rename(tmp_path: Path, whole: bytes, overwrite: bool) -> None:
    """The journal that it leaves has no file any more; the next run removes it, refused or not."""
    path = tmp_path / "x.l2q"
    path.write_bytes(whole)
    journal_of(path).write_bytes(b"{}\n")
    if overwrite:
        run(path, StopAt(-1))
    else:
        with pytest.raises(OutputExistsError):
            Writer(path, metadata(), TOKENIZER, fingerprint="f")
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


@pytest.mark.parametrize("what", [KeyboardInterrupt(), SystemExit(1)])
def test_interruption_and_resume(tmp_path: Path, whole: bytes, what: BaseException) -> None:
    path = tmp_path / "x.l2q"
    for number, encoded in ((3, 1), (11, 6), (0, 0), (18, 6)):
        stop = StopAt(number, what)
        with pytest.raises(type(what)):
            run(path, stop)
        assert stop.encoded == encoded
        assert not path.exists()
        assert part_of(path).exists()
        assert journal_of(path).exists()
    last = StopAt(-1)
    run(path, last)
    assert last.encoded == 1
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_writer import StopAt, run
from pathlib import Path
class Kill(StopAt):
    def before(self, part):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
run(Path({path!r}), Kill({number}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_kill_and_resume(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.l2q"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    for number in (1, 7, 14):
        script = KILLED.format(tests=str(TESTS / "format"), path=str(path), number=number)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=False, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert part_of(path).exists()
    last = StopAt(-1)
    run(path, last)
    assert 0 < last.encoded < 6
    assert path.read_bytes() == whole


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Interrupt the model before its tenth part: 6 of its 14 matrices are done."""
    path = tmp_path / "x.l2q"
    with pytest.raises(KeyboardInterrupt):
        run(path, StopAt(9, KeyboardInterrupt()))
    return path


def encoded_by_resuming(path: Path, **arguments: Any) -> int:
    last = StopAt(-1)
    run(path, last, **arguments)
    with L2qFile(path) as file:
        file.verify()
    return last.encoded


def test_resume_counts(interrupted: Path, whole: bytes) -> None:
    assert encoded_by_resuming(interrupted) == 8
    assert interrupted.read_bytes() == whole


def test_other_sources_start_anew(interrupted: Path, whole: bytes) -> None:
    assert encoded_by_resuming(interrupted, fingerprint="g") == 14
    assert interrupted.read_bytes() == whole


@pytest.mark.parametrize("arguments", [{"grid": "uniform"}, {"quant": "int8"}, {"group_size": 32}])
def test_another_recipe_starts_anew(interrupted: Path, arguments: dict[str, Any]) -> None:
    assert encoded_by_resuming(interrupted, **arguments) == 14


def test_no_fingerprint_no_resume(interrupted: Path) -> None:
    assert encoded_by_resuming(interrupted, fingerprint="") == 14


def test_unwritten_or_damaged_bytes_are_written_again(interrupted: Path, whole: bytes) -> None:
    part = part_of(interrupted)
    content = bytearray(part.read_bytes())
    size = len(content)
    content[size // 2] ^= 1
    part.write_bytes(content)
    assert 8 < encoded_by_resuming(interrupted) < 14
    assert interrupted.read_bytes() == whole


def test_lost_tail_of_the_part(interrupted: Path, whole: bytes) -> None:
    part = part_of(interrupted)
    os.truncate(part, part.stat().st_size - 100)
    assert 8 < encoded_by_resuming(interrupted) < 14
    assert interrupted.read_bytes() == whole


def test_lost_part(interrupted: Path, whole: bytes) -> None:
    part_of(interrupted).unlink()
    assert encoded_by_resuming(interrupted) == 14
    assert interrupted.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 30])
def test_torn_journal(interrupted: Path, whole: bytes, cut: int) -> None:
    journal = journal_of(interrupted)
    os.truncate(journal, journal.stat().st_size - cut)
    assert 8 <= encoded_by_resuming(interrupted) <= 9
    assert interrupted.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"\xff\n", b'{"key":1}\n{}\n'])
def test_strange_journal(interrupted: Path, whole: bytes, content: bytes) -> None:
    journal_of(interrupted).write_bytes(content)
    assert encoded_by_resuming(interrupted) == 14
    assert interrupted.read_bytes() == whole


def test_journal_line_of_another_tensor(interrupted: Path, whole: bytes) -> None:
    journal = journal_of(interrupted)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert encoded_by_resuming(interrupted) == 14
    assert interrupted.read_bytes() == whole


def test_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"exists; pass overwrite=True \(--force\)"):
        Writer(path, metadata(), TOKENIZER)
    with pytest.raises(OutputExistsError, match="folder"):
        Writer(tmp_path, metadata(), TOKENIZER, overwrite=True)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        Writer(tmp_path / "no" / "x.l2q", metadata(), TOKENIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["x.l2q"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    with Writer(path, metadata(), TOKENIZER) as writer:
        write_model(writer, encode_random, norm)
        path.write_bytes(b"somebody else's")
        with pytest.raises(OutputExistsError):
            writer.finish()
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    with Writer(path, metadata(), TOKENIZER):
        with pytest.raises(OutputExistsError, match="another process"):
            Writer(path, metadata(), TOKENIZER)
        assert part_of(path).exists()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match=r"needs 0\.00 GB; only 0\.00 GB are free"):
        Writer(tmp_path / "x.l2q", metadata(), TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_wrong_tensors(tmp_path: Path) -> None:
    codes = np.zeros((37, 48), dtype=np.int8)
    first = "tok_embeddings.weight.codes"
    with Writer(tmp_path / "x.l2q", metadata(), TOKENIZER) as writer:
        with pytest.raises(InvalidArgumentError, match="the next tensor is tok_embeddings"):
            writer.write("norm.weight", [np.zeros(48, dtype=np.float32)])
        with pytest.raises(InvalidArgumentError, match="is int8, not uint8"):
            writer.write(first, [codes.view(np.uint8)])
        with pytest.raises(InvalidArgumentError, match="has 1776 bytes, not 1728"):
            writer.write(first, [codes[:36]])
        with pytest.raises(InvalidArgumentError, match="has 1776 bytes, not 3552"):
            writer.write(first, [codes, codes])
        writer.write(first, [codes[:1], codes[1:20], codes[20:]])
        with pytest.raises(InvalidArgumentError, match=r"scales is not written yet"):
            writer.finish()


def test_sources_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    described = Metadata(
        SMALL,
        Recipe.for_model(SMALL, "int8"),
        template="llama2-chat",
        licences={"LICENSE.txt": 'LLAMA 2 COMMUNITY LICENSE AGREEMENT\n"\u00a9 \U0001f999"'},
        source=(SourceFile("consolidated.00.pth", 10**12), SourceFile("params.json", 7)),
    )
    hashes = {"consolidated.00.pth": "ab" * 32, "params.json": "12" * 32}
    with Writer(path, described, TOKENIZER) as writer:
        write_model(writer, encode_random, norm)
        with pytest.raises(InvalidArgumentError, match="exactly the source files"):
            writer.finish({"params.json": "12" * 32})
        with pytest.raises(HeaderError, match="64 hex digits"):
            writer.finish({**hashes, "params.json": "x"})
        model_id = writer.finish(hashes)
    with L2qFile(path) as file:
        assert file.model_id == model_id
        assert file.template == "llama2-chat"
        assert file.metadata.licences == described.licences
        assert file.metadata.attribution == ATTRIBUTION
        assert {entry.name: entry.sha256 for entry in file.metadata.source} == hashes
        assert file.metadata.source[0].bytes == 10**12
