"""`convert`: whole checkpoints, with the NumPy definition in place of the C++ quantizers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from l2q_files import split_file
from llama2q.config import ModelConfig
from llama2q.converter import shards
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.converter import ConvertReport, convert_with
from llama2q.converter.job import Options
from llama2q.errors import (
    CheckpointError,
    CorruptShardError,
    InvalidArgumentError,
    NonFiniteWeightError,
    OutputExistsError,
    QuantizationError,
)
from llama2q.format import L2qFile
from llama2q.quant import dense, grid_values, int4, int8
from numpy_quantizers import NumpyQuantizers

TESTS = Path(__file__).resolve().parents[1]


def convert(src: Path, dst: Path | None = None, **arguments: Any) -> ConvertReport:
    """Convert by the definitions; int4 rounded to nearest unless a method is given."""
    names = {field.name for field in fields(Options)}
    asked = {name: arguments.pop(name) for name in names & set(arguments)}
    if asked.get("quant", "int4") == "int4":
        asked.setdefault("method", "rtn")
    return convert_with(NumpyQuantizers(), src, dst, Options(**asked), **arguments)


@pytest.fixture(scope="module")
def folder(mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the demo model to a folder of its own."""
    copy = tmp_path_factory.mktemp("src") / "Mini-Chat"
    shutil.copytree(mini_checkpoint, copy)
    return copy


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_every_matrix(mini_checkpoint: Path, tmp_path: Path, quant: str, group_size: int) -> None:
    path = tmp_path / "x.l2q"
    report = convert(mini_checkpoint, path, quant=quant, group_size=group_size)
    grid = grid_values("nonuniform")

    def decoded(file: L2qFile, name: str, offset: int, step: int) -> NDArray[np.float32]:
        matrix = file.matrix(name)
        shape = (matrix.rows, matrix.cols)
        if matrix.stored.kind.is_dense:
            if matrix.is_table:
                return dense.widen(file.array(name))
            return dense.decode(file.array(name)[offset::step], *shape)
        codes = file.array(name + ".codes")[offset::step]
        scales = file.array(name + ".scales")[offset::step]
        if matrix.is_table:
            return int8.decode_rows(codes, scales, group_size)
        if matrix.stored.type == "int8":
            return int8.decode(codes, scales, *shape)
        return int4.decode(codes, scales, *shape, grid)

    def expected(weights: NDArray[Any], kind: str) -> NDArray[np.float32]:
        rows, cols = weights.shape
        if kind == "int4":
            return int4.decode(*int4.encode(weights, group_size, grid), rows, cols, grid)
        if kind == "int8":
            return int8.decode_rows(*int8.encode_rows(weights, group_size), group_size)
        return dense.widen(weights)

    with MetaCheckpoint.open(mini_checkpoint) as checkpoint, L2qFile(path) as file:
        file.verify()
        assert file.config == checkpoint.config == report.config
        assert bytes(file.array("tokenizer.model")) == checkpoint.tokenizer_bytes
        for name, stored in file.recipe.tensors.items():
            sources = file.matrix(name).sources
            for offset, source in enumerate(sources):
                np.testing.assert_array_equal(
                    decoded(file, name, offset, len(sources)),
                    expected(checkpoint.read(source), stored.type),
                )
        for name, info in file.tensors.items():
            if info.dtype == "F32" and len(info.shape) == 1:
                np.testing.assert_array_equal(file.array(name), dense.widen(checkpoint.read(name)))
    assert report.output_bytes == path.stat().st_size
    assert report.path == path
    assert report.recipe.quant == quant


def test_report_and_sources(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    report = convert(folder, tmp_path / "x.l2q", progress=lambda *call: calls.append(call))
    files = ["consolidated.00.pth", "params.json", "tokenizer.model"]
    with L2qFile(report.path) as file:
        assert file.model_id == report.model_id
        assert file.template == report.template == "llama2-chat"
        assert [entry.name for entry in file.metadata.source] == files
        for entry in file.metadata.source:
            content = (folder / entry.name).read_bytes()
            assert entry.sha256 == hashlib.sha256(content).hexdigest()
            assert entry.bytes == len(content)
        stored = sum(info.nbytes for info in file.tensors.values())
        assert calls[-1] == (stored, stored, "")
        assert calls == sorted(calls, key=lambda call: call[0])
    assert report.input_bytes == sum((folder / name).stat().st_size for name in files)
    assert report.seconds > 0
    assert report.peak_rss_bytes > 10**7
    assert 4.25 < report.bits_per_weight < 8.25


def test_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with MetaCheckpoint.open(folder) as checkpoint:
        dtype = checkpoint.dtype
    assert convert(folder).path == Path("Mini-Chat-int4.l2q")
    assert convert(folder, quant="none").path == Path(f"Mini-Chat-{dtype}.l2q")
    monkeypatch.chdir(folder)
    assert convert(Path(), tmp_path, quant="int8").path == tmp_path / "Mini-Chat-int8.l2q"
    inside = folder / "inside.l2q"
    try:
        assert convert(Path(), inside).path == inside
    finally:
        inside.unlink()


def test_output_is_protected(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        convert(folder, path)
    assert path.read_bytes() == b"old"
    convert(folder, path, overwrite=True)
    L2qFile(path).close()
    shard = folder / "consolidated.00.pth"
    before = shard.stat()
    with pytest.raises(InvalidArgumentError, match="part of the checkpoint"):
        convert(folder, shard, overwrite=True)
    assert shard.stat() == before


def test_wrong_arguments_leave_nothing(folder: Path, tmp_path: Path) -> None:
    for arguments in ({"quant": "int2"}, {"group_size": 48}, {"grid": "log"}):
        with pytest.raises(InvalidArgumentError):
            convert(folder, tmp_path / "x.l2q", **arguments)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "absent", tmp_path / "x.l2q")
    assert list(tmp_path.iterdir()) == []


def small_checkpoint(folder: Path, n_shards: int = 1, **values: float) -> Path:
    """Write a checkpoint with the demo model's tokenizer; `values` sets first elements."""
    mini = TESTS / "data" / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = 4096
    dim, hidden, n_layers = 64, 176, 2
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocab_size, dim),
        "norm.weight": (dim,),
        "output.weight": (vocab_size, dim),
    }
    for layer in range(n_layers):
        prefix = f"layers.{layer}."
        shapes |= {
            f"{prefix}attention.wq.weight": (dim, dim),
            f"{prefix}attention.wk.weight": (dim // 2, dim),
            f"{prefix}attention.wv.weight": (dim // 2, dim),
            f"{prefix}attention.wo.weight": (dim, dim),
            f"{prefix}feed_forward.w1.weight": (hidden, dim),
            f"{prefix}feed_forward.w2.weight": (dim, hidden),
            f"{prefix}feed_forward.w3.weight": (hidden, dim),
            f"{prefix}attention_norm.weight": (dim,),
            f"{prefix}ffn_norm.weight": (dim,),
        }
    rng = np.random.default_rng(5)
    tensors = {name: rng.normal(0, 0.1, s).astype(np.float32) for name, s in shapes.items()}
    for name, value in values.items():
        tensors[name].reshape(-1)[70 % tensors[name].size] = value
    params = {
        "dim": dim, "n_layers": n_layers, "n_heads": 16, "n_kv_heads": 8, "multiple_of": 16,
        "norm_eps": 1e-5, "vocab_size": vocab_size,
    }  # fmt: skip
    from llama2q.converter.pth_writer import write_pth

    write_pth(folder / "consolidated.00.pth", tensors, "f32")
    (folder / "params.json").write_text(json.dumps(params))
    shutil.copyfile(mini / "tokenizer.model", folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
def test_shards_change_only_the_source(tmp_path: Path, quant: str) -> None:
    one = small_checkpoint(tmp_path / "one")
    contents = []
    with MetaCheckpoint.open(one) as checkpoint:
        for n_shards in (1, 2, 8):
            split = tmp_path / f"split{n_shards}"
            split.mkdir()
            shards.split(checkpoint, split, n_shards)
            report = convert(split, tmp_path / f"{n_shards}.l2q", quant=quant)
            with L2qFile(report.path) as file:
                assert len(file.metadata.source) == n_shards + 2
            contents.append(split_file(report.path.read_bytes()))
    for header, data in contents[1:]:
        assert data == contents[0][1]
        for blank in ("source", "model_id"):
            header["__metadata__"][blank] = contents[0][0]["__metadata__"][blank]
        assert header == contents[0][0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.1.feed_forward.w3.weight", r"w3\.weight: row 1, column 6 is nan"),
        ("tok_embeddings.weight", r"tok_embeddings\.weight.*row 1, column 6 is nan"),
        ("layers.0.ffn_norm.weight", r"ffn_norm\.weight: element 6 is nan"),
    ],
)
@pytest.mark.parametrize("quant", ["int4", "none"])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str, message: str, quant: str) -> None:
    source = small_checkpoint(tmp_path / "src", **{name: float("nan")})
    with pytest.raises(NonFiniteWeightError, match=message):
        convert(source, tmp_path / "x.l2q", quant=quant)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_weights_beyond_float16(tmp_path: Path) -> None:
    name = "layers.0.attention.wo.weight"
    source = small_checkpoint(tmp_path / "src", **{name: 1e30})
    with pytest.raises(QuantizationError, match=name):
        convert(source, tmp_path / "x.l2q")
    convert(source, tmp_path / "x.l2q", quant="none")


@pytest.mark.parametrize("value", [b"\x01\x02\x03\x04", b"\xff\xff\xff\xff"])
def test_damaged_shard(tmp_path: Path, value: bytes) -> None:
    """A damaged weight is found by its CRC, though it may look like NaN first."""
    source = small_checkpoint(tmp_path / "src")
    shard = source / "consolidated.00.pth"
    with MetaCheckpoint.open(source) as checkpoint:
        needle = checkpoint.read("layers.1.attention.wo.weight")[3].tobytes()
    content = shard.read_bytes()
    assert content.count(needle) == 1
    at = content.index(needle) + 8
    shard.write_bytes(content[:at] + value + content[at + 4 :])
    with pytest.raises(CorruptShardError, match="wo"):
        convert(source, tmp_path / "x.l2q")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


class Stop:
    """A progress callback that interrupts at the n-th call."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, done: int, total: int, name: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_interruption_resumes(folder: Path, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.l2q", tmp_path / "x.l2q"
    convert(folder, whole)
    for number in (4, 20, 50):
        with pytest.raises(KeyboardInterrupt):
            convert(folder, path, progress=Stop(number))
        assert not path.exists()
    convert(folder, path)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.l2q", "x.l2q"]


KILLED = """
import os, signal
from pathlib import Path
from test_convert import convert
calls = 0
def progress(done, total, name):
    global calls
    calls += 1
    if calls > {number}:
        os.kill(os.getpid(), signal.SIGKILL)
convert(Path({folder!r}), Path({path!r}), progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_kill_resumes(folder: Path, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.l2q", tmp_path / "x.l2q"
    convert(folder, whole, quant="int8")
    places = [str(TESTS), str(TESTS / "converter"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    script = KILLED.replace("progress=progress", "progress=progress, quant='int8'")
    for number in (10, 40):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                script.format(number=number, folder=str(folder), path=str(path)),
            ],
            env=environment,
            check=False,
            capture_output=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not path.exists()
        assert path.with_name("x.l2q.part.journal").exists()
    convert(folder, path, quant="int8")
    assert path.read_bytes() == whole.read_bytes()


def test_changed_sources_are_not_resumed(tmp_path: Path) -> None:
    source = small_checkpoint(tmp_path / "src")
    path = tmp_path / "x.l2q"
    with pytest.raises(KeyboardInterrupt):
        convert(source, path, progress=Stop(15))
    small_checkpoint(source, **{"layers.0.attention.wq.weight": 0.5})
    names: list[str] = []
    convert(source, path, progress=lambda done, total, name: names.append(name))
    fresh = tmp_path / "fresh.l2q"
    convert(source, fresh)
    assert path.read_bytes() == fresh.read_bytes()


def test_core_gives_the_same_file(mini_checkpoint: Path, tmp_path: Path) -> None:
    """With the extension: same bytes as the NumPy definition, for any number of threads."""
    pytest.importorskip("llama2q._core", reason="the extension is not built here")
    from llama2q.converter.converter import convert as convert_with_core

    for quant in ("int4", "int8", "none"):
        expected = tmp_path / f"{quant}.l2q"
        convert(mini_checkpoint, expected, quant=quant)
        for n_threads in (None, 1, 3):
            path = tmp_path / f"{quant}-{n_threads}.l2q"
            method = "rtn" if quant == "int4" else None
            convert_with_core(
                mini_checkpoint, path, quant=quant, method=method, n_threads=n_threads
            )
            assert path.read_bytes() == expected.read_bytes()


def test_synthetic_files(tmp_path: Path) -> None:
    """What tools/synthetic_l2q.py writes is sound, repeatable, and of the asked spread."""
    from synthetic_l2q import WEIGHT_STD, write_l2q

    config = ModelConfig(
        dim=48, hidden_dim=172, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=37, norm_eps=1e-5
    )
    for quant in ("int4", "int8", "none"):
        path = tmp_path / f"{quant}.l2q"
        write_l2q(config, b"tokenizer", path, quant)
        first = path.read_bytes()
        write_l2q(config, b"tokenizer", path, quant)
        assert path.read_bytes() == first
        with L2qFile(path) as file:
            file.verify()
            matrix = file.matrix("layers.1.feed_forward.w2.weight")
            if quant == "int4":
                codes, scales = (file.array(matrix.name + s) for s in (".codes", ".scales"))
                weights = int4.decode(
                    codes, scales, matrix.rows, matrix.cols, grid_values("nonuniform")
                )
                assert 0.8 * WEIGHT_STD < weights.std() < 1.2 * WEIGHT_STD
