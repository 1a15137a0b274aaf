"""Folders for MLX: weights unpacked by NumPy alone, Hugging Face's row order, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import llama2q
from export.models import ODD, WHOLE, tokenizer, write_extreme
from llama2q.errors import ExportError, InvalidArgumentError, OutputExistsError
from llama2q.export.chat_templates import CHAT_TEMPLATES
from llama2q.format.metadata import ATTRIBUTION
from reference_weights import load_l2q, widen_bf16

FILES = ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
OUTSIDE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
NAMES = OUTSIDE | {
    f"layers.{layer}.{meta}.weight": f"model.layers.{layer}.{mlx}.weight"
    for layer in range(WHOLE.n_layers)
    for meta, mlx in INSIDE.items()
}


def tensors_of(folder: Path) -> dict[str, Any]:
    """Read all tensors; bfloat16 as uint16, which NumPy can hold."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    dtypes = {"U32": "<u4", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + place for place in entry["data_offsets"])
            flat = np.frombuffer(data[begin:end], dtypes[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def affine(tensors: dict[str, Any], name: str, bits: int) -> Any:
    """Unpack element by element, as MLX's documentation has it: float64, (rows, cols)."""
    words, scales, biases = (tensors[name + part] for part in ("weight", "scales", "biases"))
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[:, :, None] >> shifts & (2**bits - 1)).reshape(len(words), -1)
    group = codes.shape[1] // scales.shape[1]
    wide = [np.repeat(part.astype(np.float64), group, axis=1) for part in (scales, biases)]
    return wide[0] * codes + wide[1]


def rotated_halves(weights: Any, head_dim: int) -> Any:
    """Row i of a head's halves from Meta's pair (2 i, 2 i + 1), one row at a time."""
    rows = []
    for head in range(0, len(weights), head_dim):
        rows += [weights[head + 2 * i] for i in range(head_dim // 2)]
        rows += [weights[head + 2 * i + 1] for i in range(head_dim // 2)]
    return np.array(rows)


def expected_of(name: str, weights: Any, head_dim: int) -> Any:
    rotates = name.endswith(("attention.wq.weight", "attention.wk.weight"))
    return rotated_halves(weights, head_dim) if rotates else weights


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_quantized_weights_are_the_same_numbers(
    tmp_path: Path, quant: str, group_size: int
) -> None:
    source = write_extreme(
        tmp_path / "x.l2q",
        quant,
        config=WHOLE,
        group_size=group_size,
        grid="uniform",
        largest=511.5,
    )
    report = llama2q.export_mlx(source, tmp_path / "x")
    expected = load_l2q(source)
    tensors = tensors_of(report.path)
    inner = 4 if quant == "int4" else 8
    for meta, mlx in NAMES.items():
        if meta in expected.norms:
            assert np.array_equal(tensors.pop(mlx), expected.norms[meta]), mlx
            continue
        module = mlx.removesuffix("weight")
        found = affine(tensors, module, 8 if meta in OUTSIDE else inner)
        weights = expected.matrices[meta].float64
        assert np.array_equal(found, expected_of(meta, weights, WHOLE.head_dim)), mlx
        assert tensors[module + "scales"].shape[1] == weights.shape[1] // group_size
        for part in ("weight", "scales", "biases"):
            del tensors[module + part]
    assert tensors == {}
    assert report.output_bytes == sum(file.stat().st_size for file in report.path.iterdir())
    assert report.notes == ()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dense_weights_keep_their_type(tmp_path: Path, dtype: str) -> None:
    source = write_extreme(tmp_path / "x.l2q", "none", config=WHOLE, dtype=dtype)
    llama2q.export_mlx(source, tmp_path / "x")
    expected = load_l2q(source)
    tensors = tensors_of(tmp_path / "x")
    assert set(tensors) == set(NAMES.values())
    for meta, matrix in expected.matrices.items():
        found = tensors[NAMES[meta]]
        assert found.dtype == {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype]
        wide = widen_bf16(found) if dtype == "bf16" else found
        assert np.array_equal(wide, expected_of(meta, matrix.float64, WHOLE.head_dim)), meta
    assert "quantization" not in json.loads((tmp_path / "x" / "config.json").read_text())


def test_norms_that_float16_cannot_hold_stay_float32(tmp_path: Path) -> None:
    source = write_extreme(tmp_path / "x.l2q", "none", config=WHOLE, dtype="bf16")
    report = llama2q.export_mlx(source, tmp_path / "x")
    expected = load_l2q(source).norms
    tensors = tensors_of(report.path)
    assert all(np.array_equal(tensors[NAMES[name]], norm) for name, norm in expected.items())
    assert {tensors[NAMES[name]].dtype for name in expected} == {np.dtype(np.float32)}
    assert report.notes[0].startswith("5 norms")


def test_files(tmp_path: Path) -> None:
    texts = {"LICENSE.txt": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n"}
    source = write_extreme(
        tmp_path / "x.l2q", "int4", config=WHOLE, grid="uniform", licences=texts, largest=511.5,
        template="llama2-chat",
    )  # fmt: skip
    folder = llama2q.export_mlx(source, tmp_path / "x").path
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "LICENSES.txt"])
    assert texts["LICENSE.txt"] in (folder / "LICENSES.txt").read_text()
    assert ATTRIBUTION in (folder / "LICENSES.txt").read_text()
    assert (folder / "tokenizer.model").read_bytes() == tokenizer(WHOLE.vocab_size)
    config = json.loads((folder / "config.json").read_text())
    outer = {"group_size": 64, "bits": 8}
    assert config.pop("quantization") == {
        "group_size": 64, "bits": 4, "model.embed_tokens": outer, "lm_head": outer
    }  # fmt: skip
    expected = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 37, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 12345.0, "tie_word_embeddings": False, "torch_dtype": "float16",
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    words = json.loads((folder / "tokenizer_config.json").read_text())
    assert (words["bos_token"], words["eos_token"], words["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert words["chat_template"] == CHAT_TEMPLATES["llama2-chat"]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "mlx"}
        assert file.get_tensor("lm_head.weight").dtype == np.uint32


def refused(source: Path, target: Path, error: type[Exception], message: str) -> None:
    """Check that an export is refused by this message and leaves nothing."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(error, match=message):
        llama2q.export_mlx(source, target)
    assert sorted(target.parent.rglob("*")) == before


def test_what_mlx_cannot_hold_is_refused(tmp_path: Path) -> None:
    def write(quant: str, **arguments: Any) -> Path:
        return write_extreme(tmp_path / "x.l2q", quant, **arguments)

    out = tmp_path / "out"
    refused(write("int4", config=WHOLE), out, ExportError, "wq.*nonuniform grid.*--grid uniform")
    refused(
        write("int8", config=ODD, group_size=64), out, ExportError,
        "tok_embeddings.weight has rows of 96.*whole groups, here of 64",
    )  # fmt: skip
    refused(
        write("int8", config=WHOLE, largest=512.0), out, ExportError,
        "tok_embeddings.weight: the scale 512 needs the bias 65536",
    )  # fmt: skip
    source = write("int8", config=WHOLE, largest=511.5, tokenizer_model=b"\x0a\xff")
    refused(source, out, llama2q.errors.TokenizerError, "damaged")


def test_folders_are_replaced_only_when_asked_and_only_exports(tmp_path: Path) -> None:
    source = write_extreme(tmp_path / "x.l2q", "int8", config=WHOLE, largest=1.0)
    out = tmp_path / "out"
    out.mkdir()
    llama2q.export_mlx(source, out)
    assert sorted(file.name for file in out.iterdir()) == FILES
    (out / "config.json").write_text("old")
    refused(source, out, OutputExistsError, "not empty.*--force")
    llama2q.export_mlx(source, out, overwrite=True)
    assert "llama" in (out / "config.json").read_text()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match=r"holds 'mine.txt', which no export wrote"):
        llama2q.export_mlx(source, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    refused(source, source, OutputExistsError, "is a file")
    refused(source, tmp_path / "none" / "out", InvalidArgumentError, "does not exist")
    (tmp_path / "new.part").mkdir()
    refused(source, tmp_path / "new", OutputExistsError, "another export")
