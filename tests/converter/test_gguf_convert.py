"""Whole GGUF files converted: what is exact is exact, what is rounded says how much it lost."""

from __future__ import annotations

import hashlib
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
from converter.gguf_models import LLAMA_CPP, MIXED
from converter.hf_files import Tensors
from llama2q.converter import gguf_encode
from llama2q.converter.converter import ConvertReport, convert_with
from llama2q.errors import (
    InvalidArgumentError,
    NonFiniteWeightError,
    QuantizationError,
)
from llama2q.format import L2qFile
from numpy_quantizers import NumpyQuantizers


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
