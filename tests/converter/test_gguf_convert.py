"""Whole GGUF files converted: what is exact is exact, what is rounded says how much it lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import llama2q
from converter.gguf_files import (
    BLOCK_BYTES,
    Kind,
    decoded,
    dequantized,
    gguf_file,
    gguf_name,
    random_blocks,
    values_of,
)
from converter.hf_files import Tensors, read_meta
from converter.lora_files import ATTENTION, low_rank, modules_named, write_adapter
from converter.pth_files import Make, small_checkpoint
from llama2q.converter import gguf_encode
from llama2q.converter.converter import ConvertReport, convert_with
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.errors import (
    CheckpointNotFoundError,
    ChecksumError,
    InvalidArgumentError,
    MissingPackageError,
    MissingShardError,
    NonFiniteWeightError,
    QuantizationError,
    ShardFormatError,
    TensorSetError,
)
from llama2q.format import L2qFile
from numpy_quantizers import NumpyQuantizers
from synthetic_shapes import SyntheticShape

ODD = SyntheticShape(dim=96, n_layers=2, n_heads=4, n_kv_heads=1, multiple_of=32, vocab_size=4096)
"""wk and wv have 24 rows: a band and a half."""
LLAMA_CPP = {"": Kind.Q4_0, "output": Kind.Q6_K}
"""What llama.cpp makes of Q4_0."""
MIXED = {
    "": Kind.Q4_0, "tok": Kind.IQ4_NL, "wk": Kind.Q8_0, "wv": Kind.F16, "wo": Kind.IQ4_NL,
    "w2": Kind.Q8_0, "w3": Kind.Q8_0, "output": Kind.BF16,
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, mini_checkpoint: Path) -> Path:
    rng = np.random.default_rng(3)
    tensors = {
        name: rng.integers(0x3800, 0x3F80, shape, np.uint16)
        for name, shape in tensor_shapes(ODD.config).items()
    }
    return small_checkpoint(
        tmp_path_factory.mktemp("odd"),
        mini_checkpoint / "tokenizer.model",
        tensors=tensors,
        params=ODD.params,
    )


def check(report: ConvertReport, source: Path, *, all_exact: bool = False) -> None:
    """Compare a file with what the package gguf reads, and the report with the file."""
    expected = dequantized(source)
    with L2qFile(report.path) as file:
        file.verify()
        for tensor in report.tensors:
            values = expected[gguf_name(tensor.name)].astype(np.float64)
            found = decoded(file, tensor.name)
            if tensor.exact:
                assert tensor.error == 0
                assert np.array_equal(found, values), tensor.name
            else:
                lost = np.sqrt(np.square(found - values).sum() / np.square(values).sum())
                assert 0 < tensor.error == pytest.approx(lost, rel=1e-5)
    assert not all_exact or all(tensor.exact for tensor in report.tensors)


def rounded(report: ConvertReport) -> dict[str, tuple[str, str]]:
    return {t.name: (t.source, t.stored) for t in report.tensors if not t.exact}


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16])
def test_plain_numbers_are_kept(odd: Path, tmp_path: Path, kind: Kind) -> None:
    path = gguf_file(tmp_path / "x.gguf", odd, kind)
    report = llama2q.convert(path, tmp_path, quant="none")
    assert report.path.name == f"x-{kind.name.lower()}.l2q"
    assert (report.recipe.quant, report.recipe.method) == ("none", "none")
    assert {entry.type for entry in report.recipe.tensors.values()} == {kind.name.lower()}
    check(report, path, all_exact=True)


def test_as_from_metas_form(mini_checkpoint: Path, tmp_path: Path) -> None:
    """The same tensors by their hashes, the same tokens, whatever container they came in."""
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, Kind.BF16)
    for settings in ({"quant": "none"}, {"method": "search"}):
        options: dict[str, Any] = {**settings, "overwrite": True}
        meta = llama2q.convert(mini_checkpoint, tmp_path / "meta.l2q", **options)
        mine = llama2q.convert(path, tmp_path / "gguf.l2q", **options)
        assert mine.config == meta.config
        assert mine.recipe == meta.recipe
        with L2qFile(meta.path) as file, L2qFile(mine.path) as other:
            hashes, others = dict(file.metadata.sha256), dict(other.metadata.sha256)
            assert hashes.pop("tokenizer.model") != others.pop("tokenizer.model")
            assert hashes == others
        asked = {"max_tokens": 40, "temperature": 0.8, "seed": 3}
        with llama2q.load(meta.path) as llm, llama2q.load(mine.path) as other_llm:
            prompt = "The king of the  world"
            expected = llm.generate(prompt, **asked)
            assert other_llm.generate(prompt, **asked).token_ids == expected.token_ids
            assert other_llm.generate(prompt, **asked).text == expected.text


@pytest.mark.parametrize(
    ("kind", "stored", "table"),
    [
        (Kind.Q8_0, "int8/32", "int8/32"),
        (Kind.Q4_0, "int4/32/uniform", "int8/32"),
        (Kind.IQ4_NL, "int4/32/nonuniform", "int8/32"),
    ],
)
def test_codes_are_kept(odd: Path, tmp_path: Path, kind: Kind, stored: str, table: str) -> None:
    path = gguf_file(tmp_path / "x.gguf", odd, kind)
    report = llama2q.convert(path, tmp_path / "x.l2q")
    types = {name: str(entry) for name, entry in report.recipe.tensors.items()}
    assert types.pop("tok_embeddings.weight") == table
    assert set(types.values()) == {stored}
    assert (report.recipe.method, report.recipe.calibration) == ("gguf", "unknown")
    assert report.recipe.quant == stored.split("/")[0]
    check(report, path, all_exact=True)


def test_random_codes_and_scales(odd: Path, tmp_path: Path) -> None:
    """Every code and kind of scale, not only those that a quantizer chooses."""
    rng = np.random.default_rng(5)
    blocks: dict[str, Any] = {}
    for kind in (Kind.Q8_0, Kind.Q4_0, Kind.IQ4_NL):

        def change(tensors: Tensors, kind: Kind = kind) -> None:
            for name, data in tensors.items():
                if data.ndim == 2:
                    rows, n_blocks = len(data), data.shape[1] // BLOCK_BYTES[kind]
                    tensors[name] = blocks[name] = random_blocks(rng, rows, 32 * n_blocks, kind)

        path = gguf_file(tmp_path / "x.gguf", odd, kind, change=change)
        report = llama2q.convert(path, tmp_path / "x.l2q", overwrite=True)
        check(report, path, all_exact=True)
        with L2qFile(report.path) as file:
            for name in ("layers.1.attention.wk.weight", "layers.0.feed_forward.w3.weight"):
                expected = values_of(blocks[gguf_name(name)], kind)
                assert np.array_equal(decoded(file, name), expected)


def test_mixed_types_run(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, MIXED)
    report = llama2q.convert(path, tmp_path / "x.l2q")
    check(report, path, all_exact=True)
    types = {name: str(entry) for name, entry in report.recipe.tensors.items()}
    assert types["tok_embeddings.weight"] == "int8/32"
    assert types["layers.2.attention.wq.weight"] == "int4/32/uniform"
    assert types["layers.2.attention.wk.weight"] == "int8/32"
    assert types["layers.2.attention.wv.weight"] == "f16"
    assert types["layers.2.attention.wo.weight"] == "int4/32/nonuniform"
    assert types["layers.2.feed_forward.w1_w3.weight"] == "int8/32"
    assert types["output.weight"] == "bf16"
    with llama2q.load(report.path) as llm:
        assert len(llm.generate("Once", max_tokens=5, ignore_eos=True).token_ids) == 5


def test_what_llama_cpp_makes(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "mini.Q4_0.gguf", mini_checkpoint, LLAMA_CPP)
    report = llama2q.convert(path, tmp_path)
    assert report.path == tmp_path / "mini-int4.l2q"
    check(report, path)
    assert rounded(report) == {"output.weight": ("Q6_K", "int8/32")}
    assert (report.recipe.method, report.recipe.calibration) == ("gguf+rtn", "unknown")
    assert (report.recipe.group_size, report.recipe.grid) == (32, "uniform")
    with L2qFile(report.path) as file:
        assert [entry.name for entry in file.metadata.source] == ["mini.Q4_0.gguf"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert file.metadata.source[0].sha256 == digest


def test_other_types_are_rounded(mini_checkpoint: Path, tmp_path: Path) -> None:
    kinds = {"": Kind.Q4_K, "output": Kind.Q6_K, "wv": Kind.Q6_K, "w2": Kind.Q5_1, "w3": Kind.Q4_0}
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, kinds)
    report = llama2q.convert(path, tmp_path / "x.l2q")
    check(report, path)
    found = rounded(report)
    assert found["layers.3.attention.wq.weight"] == ("Q4_K", "int4/32/nonuniform")
    assert found["layers.3.attention.wv.weight"] == ("Q6_K", "int8/32")
    assert found["layers.3.feed_forward.w1.weight"] == ("Q4_K", "int8/32")
    assert found["layers.3.feed_forward.w2.weight"] == ("Q5_1", "int8/32")
    assert found["tok_embeddings.weight"] == ("Q4_K", "int8/32")
    assert "layers.3.feed_forward.w3.weight" not in found
    for tensor in report.tensors:
        assert tensor.error is not None
        assert tensor.error < (0.1 if "int4" in tensor.stored else 0.01)


def test_w1_and_w3_of_two_plain_types(odd: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", odd, {"": Kind.BF16, "w3": Kind.F16, "tok": Kind.F32})
    report = llama2q.convert(path, tmp_path, quant="none")
    assert report.path.name == "x-dense.l2q"
    assert report.recipe.tensors["layers.0.feed_forward.w1_w3.weight"].type == "f32"
    assert report.recipe.tensors["tok_embeddings.weight"].type == "f32"
    check(report, path, all_exact=True)


def test_what_is_asked_for(mini_checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, {"": Kind.Q4_0, "output": Kind.Q8_0})

    def convert(**arguments: Any) -> ConvertReport:
        report = llama2q.convert(path, tmp_path / "x.l2q", overwrite=True, **arguments)
        check(report, path)
        return report

    own = convert()
    assert rounded(own) == {}
    assert convert(quant="int4").model_id == own.model_id
    assert convert(quant="int4", group_size=32, grid="uniform").model_id == own.model_id
    same_values = convert(quant="int8")
    assert rounded(same_values) == {}
    assert {str(t) for t in same_values.recipe.tensors.values()} == {"int8/32"}
    other = convert(group_size=64)
    assert (other.recipe.method, other.recipe.calibration) == ("rtn", "none")
    assert len(rounded(other)) == sum(t.source != "F32" for t in other.tensors)
    assert {str(t) for t in other.recipe.tensors.values()} == {"int4/64/uniform", "int8/64"}
    grid = convert(grid="nonuniform")
    assert grid.recipe.method == "gguf+rtn"
    assert rounded(grid)["layers.0.attention.wq.weight"] == ("Q4_0", "int4/32/nonuniform")
    with pytest.raises(InvalidArgumentError, match=r"the file is quantized \(F32, Q4_0, Q8_0\)"):
        convert(quant="none")
    with pytest.raises(InvalidArgumentError, match="quant is 'int2'"):
        convert(quant="int2")
    with pytest.raises(InvalidArgumentError, match="a calibration text is of no use"):
        convert(calibration_text="x.txt")
    anew = llama2q.convert(path, tmp_path / "y.l2q", method="search")
    assert (anew.recipe.method, anew.recipe.calibration) == ("search", "none")
    assert anew.tensors == ()


def test_an_importance_matrix_is_named(odd: Path, tmp_path: Path) -> None:
    def keys(writer: GGUFWriter) -> None:
        writer.add_string("quantize.imatrix.file", "imatrix.dat")

    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q4_0, keys=keys)
    assert llama2q.convert(path, tmp_path / "x.l2q").recipe.calibration == "imatrix"


def test_one_table_for_both_ends(odd: Path, tmp_path: Path) -> None:
    path = gguf_file(
        tmp_path / "x.gguf", odd, Kind.Q4_0, change=lambda tensors: tensors.pop("output.weight")
    )
    report = llama2q.convert(path, tmp_path / "x.l2q")
    assert "the output matrix is the embedding table (no output.weight)" in report.notes
    expected = dequantized(path)["token_embd.weight"]
    with L2qFile(report.path) as file:
        assert np.array_equal(decoded(file, "output.weight"), expected)
        assert np.array_equal(decoded(file, "tok_embeddings.weight"), expected)
        assert str(file.recipe.tensors["output.weight"]) == "int4/32/uniform"


@pytest.mark.parametrize("kinds", [MIXED, {"": Kind.Q5_0, "wk": Kind.F32, "tok": Kind.F16}])
def test_bytes_depend_on_nothing_else(
    odd: Path, tmp_path: Path, kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on threads, nor on how many rows are taken at a time, nor on who quantizes."""
    path = gguf_file(tmp_path / "x.gguf", odd, kinds)
    first = llama2q.convert(path, tmp_path / "1.l2q", n_threads=1)
    check(first, path)
    monkeypatch.setattr(gguf_encode, "CHUNK_WEIGHTS", 16 * 96)
    second = llama2q.convert(path, tmp_path / "2.l2q", n_threads=3)
    third = convert_with(NumpyQuantizers(), path, tmp_path / "3.l2q", n_threads=2)
    assert first.path.read_bytes() == second.path.read_bytes() == third.path.read_bytes()
    for mine, other in zip(first.tensors, second.tensors, strict=True):
        assert mine.error == pytest.approx(other.error)


def with_blocks(change: Any) -> Any:
    def apply(tensors: Tensors) -> None:
        change(tensors["blk.1.attn_k.weight"].reshape(24, 3, -1))

    return apply


def test_weights_that_no_file_holds(odd: Path, tmp_path: Path) -> None:
    def lowest(blocks: Any) -> None:
        blocks[20, 1, 2] = 128

    def infinite(blocks: Any) -> None:
        blocks[20, 1, :2] = 0x00, 0x7C

    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0, change=with_blocks(lowest))
    output = tmp_path / "x.l2q"
    match = r"layers.1.attention.wk.weight, from row 0: row 20, column 32 has the code -128"
    with pytest.raises(QuantizationError, match=match):
        llama2q.convert(path, output)
    report = llama2q.convert(path, output, quant="int8", group_size=64)
    check(report, path)
    output.unlink()
    path = gguf_file(tmp_path / "x.gguf", odd, Kind.Q8_0, change=with_blocks(infinite))
    for arguments in ({}, {"group_size": 64}):
        match = r"layers.1.attention.wk.weight, from row 0: row 20, block 1 of 32 columns has"
        with pytest.raises(NonFiniteWeightError, match=match):
            llama2q.convert(path, output, **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "token_embd.weight"])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16])
def test_plain_numbers_that_are_not_finite(
    odd: Path, tmp_path: Path, name: str, kind: Kind
) -> None:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].view(np.uint16).reshape(-1)[96 * 5 + 7] = (
            0x7F80 if kind == Kind.BF16 else 0x7C00
        )

    path = gguf_file(tmp_path / "x.gguf", odd, kind, change=change)
    for quant in ("none", "int8"):
        with pytest.raises(NonFiniteWeightError, match="row 5, column 7 is inf"):
            llama2q.convert(path, tmp_path / "x.l2q", quant=quant)


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
