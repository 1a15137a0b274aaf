"""GGUF files as sources: split, in folders, under any name; interrupted; what they take."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llama2q
from converter.gguf_files import (
    Kind,
    gguf_file,
)
from converter.gguf_models import LLAMA_CPP, MIXED
from converter.hf_files import read_meta
from converter.lora_files import ATTENTION, low_rank, modules_named, write_adapter
from converter.pth_files import Make, small_checkpoint
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.errors import (
    CheckpointNotFoundError,
    ChecksumError,
    InvalidArgumentError,
    MissingPackageError,
    MissingShardError,
    ShardFormatError,
    TensorSetError,
)
from llama2q.format import L2qFile
from synthetic_shapes import SyntheticShape


def test_an_interrupted_conversion_goes_on(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, LLAMA_CPP | {"wq": Kind.Q5_0})
    whole = llama2q.convert(path, tmp_path / "whole.l2q")

    def stop(done: int, total: int, name: str) -> None:
        if name == "layers.2.attention_norm.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama2q.convert(path, tmp_path / "x.l2q", progress=stop)
    report = llama2q.convert(path, tmp_path / "x.l2q")
    assert report.path.read_bytes() == whole.path.read_bytes()
    errors = {tensor.name: tensor.error for tensor in report.tensors if not tensor.exact}
    assert errors["layers.1.attention.wq.weight"] is None
    assert all(error for name, error in errors.items() if name >= "layers.2")


def test_without_the_package(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gguf_file(tmp_path / "exact.gguf", odd, MIXED)
    other = gguf_file(tmp_path / "other.gguf", odd, {"": Kind.Q4_0, "w2": Kind.Q5_0})
    monkeypatch.setitem(sys.modules, "gguf", None)
    llama2q.convert(exact, tmp_path / "exact.l2q")
    with pytest.raises(MissingPackageError, match=r"type Q5_0 .* pip install 'llama2q\[gguf\]'"):
        llama2q.convert(other, tmp_path / "other.l2q")
    assert not list(tmp_path.glob("other.l2q*"))


@pytest.fixture
def parts(odd: Path, tmp_path: Path) -> list[Path]:
    folder = tmp_path / "split"
    folder.mkdir()
    gguf_file(folder / "odd.gguf", odd, Kind.Q8_0, split_max_tensors=8)
    return sorted(folder.iterdir())


def test_a_split_file(odd: Path, tmp_path: Path, parts: list[Path]) -> None:
    assert len(parts) == 3
    whole = llama2q.convert(gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0), tmp_path / "x.l2q")
    with L2qFile(whole.path) as file:
        hashes = file.metadata.sha256
    for given in (parts[0], parts[2], parts[0].parent):
        report = llama2q.convert(given, tmp_path, overwrite=True)
        assert report.path.name == "odd-int8.l2q"
        assert report.notes[0].startswith("a GGUF file in 3 parts")
        with L2qFile(report.path) as file:
            assert file.metadata.sha256 == hashes
            assert [entry.name for entry in file.metadata.source] == [p.name for p in parts]


def test_parts_that_do_not_fit(tmp_path: Path, parts: list[Path]) -> None:
    first, second, third = parts
    output = tmp_path / "x.l2q"
    third.rename(tmp_path / "aside")
    with pytest.raises(MissingShardError, match=r"odd-00003-of-00003.gguf is missing: the model"):
        llama2q.convert(first, output)
    third.write_bytes(second.read_bytes())
    with pytest.raises(TensorSetError, match="says that it is part 2 of 3; its name makes it 3"):
        llama2q.convert(first, output)
    with pytest.raises(TensorSetError, match="says that it is part 2 of 3; its name makes it 1 of"):
        llama2q.convert(second.rename(tmp_path / "x.gguf"), output)
    bad = tmp_path / "x-00004-of-00003.gguf"
    bad.touch()
    with pytest.raises(MissingShardError, match="says that it is part 4 of 3"):
        llama2q.convert(bad, output)


def test_known_by_the_first_bytes(odd: Path, tmp_path: Path) -> None:
    """A blob of ollama's has no ending, and the SHA-256 that it is named by is checked."""
    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    blob = path.rename(tmp_path / f"sha256-{digest}")
    report = llama2q.convert(blob, tmp_path)
    assert report.path.name == "model-int8.l2q"
    assert report.n_checksums == 1
    wrong = blob.rename(tmp_path / f"sha256-{digest[::-1]}")
    with pytest.raises(ChecksumError, match="its blob in the cache is named"):
        llama2q.convert(wrong, tmp_path / "y.l2q")
    llama2q.convert(wrong, tmp_path / "y.l2q", verify_checksums=False)


def test_folders(odd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = gguf_file(folder / "a.gguf", odd, Kind.Q8_0)
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    (tmp_path / "LICENSE.above").write_text("of something else")
    report = llama2q.convert(folder, tmp_path)
    with L2qFile(report.path) as file:
        assert list(file.metadata.licences) == ["LICENSE"]
        assert file.metadata.attribution is not None
    (folder / "b.gguf").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointNotFoundError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\)"):
        llama2q.convert(folder, tmp_path / "x.l2q")
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    with pytest.raises(ShardFormatError, match=r"page\.gguf is a web page"):
        llama2q.convert(page, tmp_path / "x.l2q")


def test_a_list_of_metas_files_beside_it_says_nothing(odd: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0)
    (tmp_path / "checklist.chk").write_text(f"{'0' * 32}  consolidated.00.pth\n")
    assert llama2q.convert(path, tmp_path / "x.l2q").n_checksums == 0


def test_a_source_is_not_overwritten(odd: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0)
    data = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="part of the checkpoint"):
        llama2q.convert(path, path, overwrite=True)
    assert path.read_bytes() == data


def test_command(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "mini.gguf", mini_checkpoint, LLAMA_CPP)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = "from llama2q.cli.convert import main; main()"
        return subprocess.run(
            [sys.executable, "-c", command, str(path), "-o", str(tmp_path / "x.l2q"), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=True,
        )

    done = run()
    assert done.stdout == f"{tmp_path / 'x.l2q'}\n"
    assert "56 of 57 tensors are exactly those of the file" in done.stderr
    assert "rounded: 1 Q6_K -> int8/32, error (RMS) 0." in done.stderr
    values = json.loads(run("--force", "--json").stdout)
    assert values["recipe"]["method"] == "gguf+rtn"
    assert len(values["tensors"]) == 57
    last = values["tensors"][-1]
    assert (last["name"], last["source"], last["exact"]) == ("output.weight", "Q6_K", False)


def test_meta_tensors_are_all_named(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "mini.gguf", mini_checkpoint, Kind.Q8_0)
    report = llama2q.convert(path, tmp_path / "x.l2q")
    assert [tensor.name for tensor in report.tensors] == list(read_meta(mini_checkpoint)[0])
    other = llama2q.convert(mini_checkpoint, tmp_path / "y.l2q", method="rtn")
    assert other.tensors == ()


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (Kind.Q4_0, {}),
        ({"": Kind.Q4_K, "output": Kind.Q6_K}, {}),
        (Kind.Q8_0, {"quant": "int4", "method": "rtn"}),
        (Kind.F16, {"quant": "none"}),
        ({"": Kind.F16, "w3": Kind.F32}, {"quant": "int8"}),
    ],
)
def test_what_it_will_need_is_said_before(
    mini_checkpoint: Path, tmp_path: Path, kinds: dict[str, Kind] | Kind, options: dict[str, str]
) -> None:
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, kinds)
    plan = llama2q.plan_conversion(path, tmp_path, **options)
    report = llama2q.convert(path, tmp_path, **options)
    assert (plan.path, plan.recipe, plan.notes) == (report.path, report.recipe, report.notes)
    assert plan.output_bytes == report.output_bytes
    assert plan.bits_per_weight == report.bits_per_weight
    assert 0 < plan.seconds < 60


MEASURE = """
import sys, llama2q
from llama2q.memory import peak_resident_bytes
convert, before = llama2q.convert, peak_resident_bytes()
convert(sys.argv[1], sys.argv[2], n_threads=2)
print(peak_resident_bytes() - before)
"""
WIDE = SyntheticShape(dim=2048, n_layers=1, n_heads=16, multiple_of=256, vocab_size=4096)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_K, Kind.Q5_0])
def test_memory(mini_checkpoint: Path, tmp_path: Path, kind: Kind) -> None:
    """What was foreseen is enough, and not much more than that."""
    rng = np.random.default_rng(1)
    tensors = {
        name: rng.integers(0x3800, 0x3F80, shape, np.uint16)
        for name, shape in tensor_shapes(WIDE.config).items()
    }
    tokenizer = mini_checkpoint / "tokenizer.model"
    meta = small_checkpoint(tmp_path / "wide", tokenizer, tensors=tensors, params=WIDE.params)
    path = gguf_file(tmp_path / "x.gguf", meta, kind)
    plan = llama2q.plan_conversion(path, tmp_path / "x.l2q", n_threads=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "x.l2q")],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    used = int(done.stdout)
    assert used <= plan.memory_bytes < used + 64 * 2**20


def test_an_adapter(make: Make, tmp_path: Path) -> None:
    """It is merged into plain numbers of a GGUF file as into those of Meta's form."""
    meta = make()
    _, config = read_meta(meta)
    factors = low_rank(config, modules_named(config, ATTENTION))
    adapter = write_adapter(tmp_path / "adapter", factors, target_modules=list(ATTENTION))
    plain = gguf_file(tmp_path / "x.gguf", meta, Kind.BF16)
    report = llama2q.convert(plain, tmp_path / "x.l2q", lora=adapter, method="rtn")
    other = llama2q.convert(meta, tmp_path / "y.l2q", lora=adapter, method="rtn")
    with L2qFile(report.path) as file, L2qFile(other.path) as meta_file:
        for name, digest in meta_file.metadata.sha256.items():
            assert name == "tokenizer.model" or file.metadata.sha256[name] == digest


def test_an_adapter_needs_plain_weights(odd: Path, tmp_path: Path) -> None:
    _, config = read_meta(odd)
    factors = low_rank(config, modules_named(config, ATTENTION))
    adapter = write_adapter(tmp_path / "adapter", factors, target_modules=list(ATTENTION))
    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0)
    with pytest.raises(InvalidArgumentError, match="the weights are quantized"):
        llama2q.convert(path, tmp_path / "x.l2q", lora=adapter)
