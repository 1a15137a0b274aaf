"""Models larger than memory: which layers stay, and that reading the others changes no bit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
import synthetic_l2q
from llama2q import _core
from llama2q.config import ModelConfig
from llama2q.engine import Engine
from llama2q.errors import CancelledError, InvalidArgumentError
from llama2q.format.reader import L2qFile
from llama2q.kv_sequence import Sequence
from llama2q.ragged import Span
from llama2q.read_ahead import ReadAhead, is_worth_loading, layer_ranges, read_ahead_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is steered on Linux")

CONFIG = ModelConfig(
    dim=256, hidden_dim=512, n_layers=12, n_heads=4, n_kv_heads=2, vocab_size=4096,
    norm_eps=1e-5, max_seq_len=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "x.l2q"
    synthetic_l2q.write_l2q(CONFIG, (mini_checkpoint / "tokenizer.model").read_bytes(), path)
    return path


@pytest.fixture
def small_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Leave room for so much of the layers beside everything else."""

    def leave(share: float) -> None:
        with L2qFile(model) as file:
            layers = sum(end - begin for begin, end in layer_ranges(file))
            room = file.file_bytes - layers + layers * share
        anonymous = llama2q.plan(model, kv_dtype="f16").anonymous_bytes
        monkeypatch.setattr("llama2q.memory.available_bytes", lambda: anonymous + int(room))

    return leave


def decode(engine: Engine, n_steps: int = 3) -> Iterator[bytes]:
    sequence = Sequence(engine.pool, 100)
    for n in (70, *[1] * n_steps):
        yield engine.forward([Span(sequence, [(7 * n + i) % 4096 for i in range(n)])]).tobytes()
    sequence.release()


def open_engine(path: Path, **options: Any) -> Engine:
    return Engine(path, kv_dtype="f16", max_sequences=1, **options)


@linux
def test_layers_are_chosen(model: Path) -> None:
    with L2qFile(model) as file:
        ranges = layer_ranges(file)
        sizes = {end - begin for begin, end in ranges}
        (size,) = sizes
        assert [begin for begin, _ in ranges] == sorted(begin for begin, _ in ranges)
        fixed = file.file_bytes - 12 * size
        assert read_ahead_for(file, file.file_bytes, file.config.n_layers) is None
        previous = 0
        for n in range(11, 1, -1):
            room = (fixed + n * size) * 32 // 31 + 32
            if room >= file.file_bytes:
                continue
            chosen = read_ahead_for(file, room, file.config.n_layers)
            assert chosen is not None
            # What stays, and the window.
            assert 12 - len(chosen.streamed) + 2 == n
            assert chosen.streamed_bytes == len(chosen.streamed) * size
            assert chosen.window_bytes == 2 * size
            assert len(chosen.streamed) > previous
            gaps = np.diff([*chosen.streamed, chosen.streamed[0] + 12])
            assert gaps.max() - gaps.min() <= 1
            previous = len(chosen.streamed)
        nothing_stays = read_ahead_for(file, 1, file.config.n_layers)
        assert nothing_stays is not None
        assert nothing_stays.streamed == tuple(range(12))


def test_other_systems_page_by_themselves(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2q.read_ahead.CACHE_CAN_BE_STEERED", False)
    with L2qFile(model) as file:
        assert read_ahead_for(file, file.file_bytes // 2, file.config.n_layers) is None
        for room, expected in ((file.file_bytes, True), (file.file_bytes - 1, False)):
            monkeypatch.setattr("llama2q.memory.available_bytes", lambda room=room: room)
            assert is_worth_loading(file) is expected
    monkeypatch.undo()
    monkeypatch.setattr("llama2q.read_ahead.CACHE_CAN_BE_STEERED", False)
    plan = llama2q.plan(model, memory=plan_memory(model))
    assert ": the weights do not fit beside the rest and will be read from disk" in plan.message


def plan_memory(model: Path) -> int:
    """Memory that holds half of the file beside the rest."""
    plan = llama2q.plan(model, kv_dtype="int8")
    return plan.anonymous_bytes + plan.weight_bytes // 2


@linux
def test_the_plan_says_so(model: Path) -> None:
    plan = llama2q.plan(model, memory=plan_memory(model))
    assert isinstance(plan.read_ahead, ReadAhead)
    assert not plan.fits
    assert plan.can_load
    n = len(plan.read_ahead.streamed)
    assert (
        f" of them ({n} of 12 layers), read ahead of their use, will be read from disk at each step"
    ) in plan.message
    assert plan.to_dict()["read_ahead"]["streamed_bytes"] == plan.read_ahead.streamed_bytes
    assert llama2q.plan(model, memory="8GiB").read_ahead is None


@linux
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_same_bits(model: Path, small_memory: Callable[[float], None], share: float) -> None:
    with open_engine(model) as engine:
        assert engine.plan.read_ahead is None
        expected = list(decode(engine))
    small_memory(share)
    with open_engine(model) as engine:
        assert engine.plan.read_ahead is not None
        assert list(decode(engine)) == expected
        assert list(decode(engine)) == expected


@pytest.mark.parametrize("loading", ["map", "read"])
def test_same_bits_however_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: str
) -> None:
    """A copy, the pages of which the system may have dropped, and the model, which is in memory."""
    with open_engine(model) as engine:
        expected = list(decode(engine))
    path = tmp_path / "cold.l2q"
    path.write_bytes(model.read_bytes())
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    monkeypatch.setattr("llama2q.weights.LOADING", loading)
    for place in (path, model):
        with open_engine(place) as engine:
            assert list(decode(engine)) == expected


@linux
def test_a_pass_that_ends_early(model: Path, small_memory: Callable[[float], None]) -> None:
    with open_engine(model) as engine:
        expected = list(decode(engine, 1))
    small_memory(0.3)
    with open_engine(model) as engine:
        for milliseconds in (0, 0, 1, 2, 3, 5):
            flag = _core.CancelFlag()
            sequence = Sequence(engine.pool, 512)
            timer = threading.Timer(milliseconds / 1000, flag.set)
            timer.start()
            with contextlib.suppress(CancelledError):
                engine.forward([Span(sequence, [1] * 200)], flag)
            timer.join()
            sequence.release()
            assert list(decode(engine, 1)) == expected


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(model: Path, small_memory: Callable[[float], None]) -> None:
    small_memory(0.3)
    with open_engine(model) as engine:
        expected = list(decode(engine, 1))
        child = os.fork()
        if child == 0:
            os._exit(0 if list(decode(engine, 1)) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert list(decode(engine, 1)) == expected


@linux
def test_arguments_of_the_core(model: Path, tmp_path: Path) -> None:
    with open_engine(model) as engine, model.open("rb") as file:
        core, ranges = engine._open_model(), layer_ranges(engine.file)
        layers = [(*bounds, True) for bounds in ranges]
        core.read_ahead(file.fileno(), engine.file.map, layers, 0)
        for wrong, message in (
            (layers[1:], "11 layers; the host has 12"),
            ([(5, 5, True), *layers[1:]], "a layer at bytes 5 to 5; the map has"),
            ([(-1, 5, True), *layers[1:]], "a layer at bytes -1 to 5"),
            ([(0, 2**40, True), *layers[1:]], "a layer at bytes 0 to"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                core.read_ahead(file.fileno(), engine.file.map, wrong, 0)
        with pytest.raises(InvalidArgumentError, match="window_bytes is -1"):
            core.read_ahead(file.fileno(), engine.file.map, layers, -1)
        with pytest.raises(InvalidArgumentError, match="-1 is not an open file"):
            core.read_ahead(-1, engine.file.map, layers, 0)
        with pytest.raises(InvalidArgumentError, match='loading is "x"; expected map or read'):
            core.read_ahead(file.fileno(), engine.file.map, layers, 0, "x")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"expected an mmap\.mmap"):
            core.read_ahead(file.fileno(), np.zeros(9, np.uint8), layers, 0)  # type: ignore[arg-type]
        with (
            mmap(file.fileno(), 0, access=ACCESS_COPY) as private,
            pytest.raises(InvalidArgumentError, match="map is writable"),
        ):
            core.read_ahead(file.fileno(), private, layers, 0)
        assert len(list(decode(engine))) == 4


CHANGED = """
import os, sys
import llama2q
with llama2q.load(sys.argv[1]) as llm:
    llm.generate("Once upon a time", max_tokens=2)
    os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) + int(sys.argv[2]))
    try:
        llm.generate("Once upon a time", max_tokens=2)
    except llama2q.errors.TruncatedFileError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be truncated")
@pytest.mark.parametrize("change", [-2_000_000, 64])
def test_a_file_that_changes_its_size(model: Path, tmp_path: Path, change: int) -> None:
    """Another process writes to the file: a named error, not a death by SIGBUS."""
    path = tmp_path / "changed.l2q"
    path.write_bytes(model.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, str(path), str(change)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size = model.stat().st_size
    assert f"changed.l2q has {size + change} bytes now, {size} when it was opened" in done.stdout
