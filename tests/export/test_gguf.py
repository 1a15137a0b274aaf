"""GGUF files: weights against the package `gguf` bit for bit, metadata, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from gguf import GGMLQuantizationType, GGUFReader, dequantize

import llama2q
from export.models import BPE, ODD, PIECES, UNIGRAM, tokenizer, write_extreme
from llama2q.errors import (
    ExportError,
    InvalidArgumentError,
    NotAnL2qFileError,
    OutputExistsError,
    TokenizerError,
)
from llama2q.export.chat_templates import CHAT_TEMPLATES
from llama2q.format import L2qFile
from llama2q.format.metadata import ATTRIBUTION
from numpy_quantizers import SMALL
from reference_weights import load_l2q

Kind = GGMLQuantizationType

RECIPES: list[tuple[dict[str, Any], Kind, Kind, int]] = [
    *(
        (dict(quant="int4", grid=grid, group_size=size), kind, Kind.Q8_0, file_type)
        for grid, kind, file_type in (("uniform", Kind.Q4_0, 2), ("nonuniform", Kind.IQ4_NL, 25))
        for size in (32, 64, 128)
    ),
    *((dict(quant="int8", group_size=size), Kind.Q8_0, Kind.Q8_0, 7) for size in (32, 64, 128)),
    (dict(quant="none", dtype="f32"), Kind.F32, Kind.F32, 0),
    (dict(quant="none", dtype="f16"), Kind.F16, Kind.F16, 1),
    (dict(quant="none", dtype="bf16"), Kind.BF16, Kind.BF16, 32),
]
"""Recipe, types of the layers' and of the outer matrices, llama.cpp's number of the file's type."""


def names_of(layer: int) -> dict[str, str]:
    """GGUF's name of each matrix of a layer, by Meta's."""
    meta, gguf = f"layers.{layer}.", f"blk.{layer}."
    return {
        f"{meta}attention.wq.weight": f"{gguf}attn_q.weight",
        f"{meta}attention.wk.weight": f"{gguf}attn_k.weight",
        f"{meta}attention.wv.weight": f"{gguf}attn_v.weight",
        f"{meta}attention.wo.weight": f"{gguf}attn_output.weight",
        f"{meta}feed_forward.w1.weight": f"{gguf}ffn_gate.weight",
        f"{meta}feed_forward.w2.weight": f"{gguf}ffn_down.weight",
        f"{meta}feed_forward.w3.weight": f"{gguf}ffn_up.weight",
    }


OUTSIDE = {"tok_embeddings.weight": "token_embd.weight", "output.weight": "output.weight"}
NORMS = {"norm.weight": "output_norm.weight"} | {
    f"layers.{layer}.{meta}.weight": f"blk.{layer}.{gguf}.weight"
    for layer in range(ODD.n_layers)
    for meta, gguf in (("attention_norm", "attn_norm"), ("ffn_norm", "ffn_norm"))
}


def value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def same_bits(found: Any, expected: Any) -> bool:
    """Whether two float arrays are equal, signs of zeros included."""
    wide = [np.ascontiguousarray(array, np.float32).view(np.uint32) for array in (found, expected)]
    return found.shape == expected.shape and bool((wide[0] == wide[1]).all())


@pytest.mark.parametrize(("recipe", "inner", "outer", "file_type"), RECIPES)
def test_weights_are_the_same_numbers(
    tmp_path: Path, recipe: dict[str, Any], inner: Kind, outer: Kind, file_type: int
) -> None:
    source = write_extreme(tmp_path / "odd.l2q", **recipe)
    report = llama2q.export_gguf(source, tmp_path / "odd.gguf")
    expected = load_l2q(source)
    reader = GGUFReader(report.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = OUTSIDE | names_of(0) | names_of(1)
    assert set(tensors) == set(names.values()) | set(NORMS.values())
    for meta, gguf in names.items():
        tensor = tensors[gguf]
        assert tensor.tensor_type == (outer if meta in OUTSIDE else inner), gguf
        found = dequantize(tensor.data, tensor.tensor_type)
        assert same_bits(found, expected.matrices[meta].float64), gguf
    for meta, gguf in NORMS.items():
        assert tensors[gguf].tensor_type == Kind.F32
        assert same_bits(tensors[gguf].data, expected.norms[meta])
    assert value(reader, "general.file_type") == file_type
    assert report.output_bytes == report.path.stat().st_size


def test_metadata(tmp_path: Path) -> None:
    source = write_extreme(tmp_path / "odd.l2q", "int4")
    llama2q.export_gguf(source, tmp_path / "x.gguf")
    reader = GGUFReader(tmp_path / "x.gguf")
    for key, expected in {
        "general.architecture": "llama",
        "general.name": "odd",
        "general.quantization_version": 2,
        "llama.vocab_size": 37,
        "llama.context_length": 512,
        "llama.embedding_length": 96,
        "llama.block_count": 2,
        "llama.feed_forward_length": 160,
        "llama.attention.head_count": 3,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 12345.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }.items():
        assert value(reader, key) == expected, key
    for index, key in enumerate(("tokens", "scores", "token_type")):
        found = value(reader, f"tokenizer.ggml.{key}")
        assert len(found) == 37
        assert found[: len(PIECES)] == [piece[index] for piece in PIECES]
    assert reader.get_field("general.license") is None
    assert reader.get_field("tokenizer.chat_template") is None


@pytest.mark.parametrize("template", ["llama2-chat", "vicuna", "zephyr", "chatml"])
def test_chat_template(tmp_path: Path, template: str) -> None:
    source = write_extreme(tmp_path / "x.l2q", "int8", template=template)
    reader = GGUFReader(llama2q.export_gguf(source, tmp_path / "x.gguf").path)
    assert value(reader, "tokenizer.chat_template") == CHAT_TEMPLATES[template]


def test_tokenizer_of_the_demo_model(
    mini_file: Path, mini_checkpoint: Path, tmp_path: Path
) -> None:
    report = llama2q.export_gguf(mini_file, tmp_path / "mini.gguf")
    reader = GGUFReader(report.path)
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(mini_checkpoint / "tokenizer.model")
    )
    ids = range(model.vocab_size())
    assert value(reader, "tokenizer.ggml.tokens") == [model.id_to_piece(i) for i in ids]
    assert value(reader, "tokenizer.ggml.scores") == [model.get_score(i) for i in ids]
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert kinds[:4] == [2, 3, 3, 6]
    assert all((kinds[i] == 6) == model.is_byte(i) for i in ids)
    assert all((kinds[i] == 3) == model.is_control(i) for i in ids)
    assert any("spaces" in note for note in report.notes)


def test_licences(tmp_path: Path) -> None:
    texts = {"LICENSE.txt": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n", "USE_POLICY.md": "Be good.\n"}
    source = write_extreme(tmp_path / "x.l2q", "int4", licences=texts)
    llama2q.export_gguf(source, tmp_path / "x.gguf")
    reader = GGUFReader(tmp_path / "x.gguf")
    assert value(reader, "general.license") == "llama2"
    text = value(reader, "general.license.text")
    assert all(part in text for part in [*texts, *texts.values(), ATTRIBUTION])


def test_the_same_bytes_again_and_in_place_of_the_old(tmp_path: Path) -> None:
    source = write_extreme(tmp_path / "x.l2q", "int8")
    out = tmp_path / "x.gguf"
    llama2q.export_gguf(source, out)
    first = out.read_bytes()
    out.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="overwrite"):
        llama2q.export_gguf(source, out)
    assert out.read_bytes() == b"old"
    calls: list[tuple[int, int, str]] = []
    llama2q.export_gguf(source, out, overwrite=True, progress=lambda *call: calls.append(call))
    assert out.read_bytes() == first
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[0][2] == "token_embd.weight"
    assert calls[-1] == (len(first), len(first), "")


def test_chunks_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices are read in several parts; here every band is one."""
    from llama2q.export import rows

    source = write_extreme(tmp_path / "x.l2q", "int4")
    whole = llama2q.export_gguf(source, tmp_path / "whole.gguf").path.read_bytes()
    monkeypatch.setattr(rows, "_CHUNK_WEIGHTS", 1)
    parts = llama2q.export_gguf(source, tmp_path / "x.gguf").path.read_bytes()
    assert parts == whole
    with L2qFile(source) as file:
        matrix = file.matrix("output.weight")
        assert [len(part) for part in rows.code_rows(file, matrix, "output.weight")] == [16, 16, 5]


def test_rows_that_are_not_whole_blocks_are_refused(tmp_path: Path) -> None:
    small = tokenizer(SMALL.vocab_size)
    source = write_extreme(tmp_path / "x.l2q", "int4", config=SMALL, tokenizer_model=small)
    with pytest.raises(ExportError, match=r"rows of tok_embeddings.weight have 48 .*--quant none"):
        llama2q.export_gguf(source, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.l2q"]
    dense = write_extreme(tmp_path / "x.l2q", "none", config=SMALL, tokenizer_model=small)
    llama2q.export_gguf(dense, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (tokenizer(36), TokenizerError, "has 36 pieces, the model 37 tokens"),
        (tokenizer(37, kind=UNIGRAM), ExportError, "BPE"),
        (tokenizer(37)[:-1], TokenizerError, "damaged"),
        (tokenizer(37, pieces=[("x", 0.0, 9)]), TokenizerError, "piece 0"),
    ],
)
def test_unfit_tokenizers_are_refused(
    tmp_path: Path, model: bytes, error: type[Exception], message: str
) -> None:
    source = write_extreme(tmp_path / "x.l2q", "int4", tokenizer_model=model)
    with pytest.raises(error, match=message):
        llama2q.export_gguf(source, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.l2q"]


@pytest.mark.parametrize(
    ("normalizer", "n_notes", "prefix"),
    [
        (b"\x18\x00\x20\x00", 0, False),
        (b"\x18\x01\x20\x01", 1, True),
        (b"\x12\x02ab\x20\x00", 1, True),
        (b"", 1, True),
    ],
)
def test_what_the_tokenizer_does_with_spaces(
    tmp_path: Path, normalizer: bytes, n_notes: int, prefix: bool
) -> None:
    """SentencePiece's own defaults are to add a space in front and to drop extra ones."""
    model = tokenizer(37, kind=BPE, normalizer=normalizer)
    source = write_extreme(tmp_path / "x.l2q", "int4", tokenizer_model=model)
    report = llama2q.export_gguf(source, tmp_path / "x.gguf")
    assert len(report.notes) == n_notes
    reader = GGUFReader(report.path)
    assert value(reader, "tokenizer.ggml.add_space_prefix") == prefix


def test_wrong_files(tmp_path: Path) -> None:
    source = write_extreme(tmp_path / "x.l2q", "int4")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(InvalidArgumentError, match="is the file to export"):
            llama2q.export_gguf(source, target, overwrite=True)
    assert source.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        llama2q.export_gguf(tmp_path / "none.l2q", tmp_path / "x.gguf")
    shutil.copy(llama2q.export_gguf(source, tmp_path / "x.gguf").path, tmp_path / "y.l2q")
    with pytest.raises(NotAnL2qFileError, match="GGUF"):
        llama2q.export_gguf(tmp_path / "y.l2q", tmp_path / "z.gguf")
