"""Hugging Face's form of the demo model gives the tensors that Meta's form gives, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import llama2q
from converter.hf_files import (
    FORMS,
    INDEX,
    Tensors,
    as_hub_cache,
    change_json,
    hf_folder,
    hf_tensors,
    permute,
    read_meta,
    write_json,
    write_safetensors,
)
from converter.pth_files import Make
from llama2q.converter.forms import open_checkpoint
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.converter.hf_tensors import unpermute
from llama2q.errors import (
    CheckpointNotFoundError,
    ChecksumError,
    ClosedError,
    CorruptShardError,
    InvalidArgumentError,
    ParamsError,
    ShardIndexError,
    TensorSetError,
    UnsupportedModelError,
)
from llama2q.format import L2qFile


@pytest.fixture
def small(make: Make) -> Path:
    """Write the small model in Meta's form."""
    return make()


def refused(folder: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match), HfCheckpoint.open(folder):
        pass


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_tensors(mini_checkpoint: Path, tmp_path: Path, form: str) -> None:
    folder = hf_folder(tmp_path / "mini-hf", mini_checkpoint, form)
    llama2q.convert(mini_checkpoint, tmp_path / "meta.l2q", method="rtn")
    report = llama2q.convert(folder, tmp_path / "hf.l2q", method="rtn")
    with L2qFile(tmp_path / "meta.l2q") as meta, L2qFile(report.path) as file:
        file.verify()
        assert file.metadata.sha256 == meta.metadata.sha256
        same = {"source": (), "model_id": ""}
        assert dataclasses.replace(file.metadata, **same) == dataclasses.replace(
            meta.metadata, **same
        )
        for entry in file.metadata.source:
            content = (folder / entry.name).read_bytes()
            assert entry.sha256 == hashlib.sha256(content).hexdigest()
            assert entry.bytes == len(content)
        assert {entry.name for entry in file.metadata.source} == {p.name for p in folder.iterdir()}
    assert report.notes == ("a Hugging Face checkpoint (config.json): q and k rows un-permuted",)
    assert report.template == "base"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_dtypes_and_norms_in_float32(small: Path, tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    meta, config = read_meta(small)
    meta = {
        name: rng.normal(size=a.shape).astype(np.float32 if a.ndim == 1 else dtype)
        for name, a in meta.items()
    }

    def change(tensors: Tensors) -> None:
        tensors.clear()
        tensors.update(hf_tensors(meta, config))

    with HfCheckpoint.open(hf_folder(tmp_path / "x", small, change=change)) as checkpoint:
        assert checkpoint.dtype == {4: "f32", 2: "f16"}[np.dtype(dtype).itemsize]
        assert list(checkpoint.shapes) == list(meta)
        for name, array in meta.items():
            found = checkpoint.read(name)
            assert found.dtype == array.dtype
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, array)
            checkpoint.release(name)
            checkpoint.check_crc(name)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.sampled_from(["u2", "f4"]))
def test_unpermute_inverts_permute(n_heads: int, half: int, cols: int, dtype: str) -> None:
    rows = n_heads * 2 * half
    weights = np.arange(rows * cols).reshape(rows, cols).astype(dtype)
    np.testing.assert_array_equal(unpermute(permute(weights, n_heads), n_heads), weights)


def half_split(x: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate as transformers' `apply_rotary_pos_emb` does; x (n_heads, head_dim)."""
    first, second = np.split(x, 2, axis=1)
    rotated = np.concatenate([-second, first], axis=1)
    both = np.concatenate([angles, angles])
    return x * np.cos(both) + rotated * np.sin(both)


def interleaved(x: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate as Meta's `apply_rotary_emb` does."""
    pairs = x.reshape(*x.shape[:-1], -1, 2) @ np.array([1, 1j])
    turned = pairs * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def test_attention_scores_agree_with_half_split_rotation() -> None:
    """The scores of Hugging Face's rows and rotation are those of Meta's; 4 heads, 2 KV heads."""
    rng = np.random.default_rng(1)
    head_dim, dim = 8, 32
    q, k = rng.normal(size=(4 * head_dim, dim)), rng.normal(size=(2 * head_dim, dim))
    x, y = rng.normal(size=(2, dim))
    inv_freq = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)

    def scores(q: NDArray[Any], k: NDArray[Any], rotate: Any) -> NDArray[np.float64]:
        queries = rotate((q @ x).reshape(4, head_dim), 7 * inv_freq)
        keys = rotate((k @ y).reshape(2, head_dim), 3 * inv_freq)
        return np.einsum("hd,hd->h", queries, np.repeat(keys, 2, axis=0))

    np.testing.assert_allclose(
        scores(unpermute(q, 4), unpermute(k, 2), interleaved),
        scores(q, k, half_split),
        rtol=1e-12,
    )


def test_views_are_not_copies_and_closed_checkpoints_say_so(small: Path, tmp_path: Path) -> None:
    with HfCheckpoint.open(hf_folder(tmp_path / "x", small)) as checkpoint:
        view = checkpoint.read("output.weight")
        assert view.base is not None
        assert (
            view.__array_interface__["data"][0]
            == checkpoint.read("output.weight").__array_interface__["data"][0]
        )
        with pytest.raises(InvalidArgumentError, match="no tensor"):
            checkpoint.read("lm_head.weight")
    with pytest.raises(ClosedError):
        checkpoint.read("output.weight")


def test_headers_that_misalign_the_data(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", small)
    meta, config = read_meta(small)
    path = folder / "model.safetensors"
    header = write_safetensors(path, hf_tensors(meta, config), align=1).read_bytes()
    if int.from_bytes(header[:8], "little") % 2 == 0:
        length = int.from_bytes(header[:8], "little")
        path.write_bytes((length + 1).to_bytes(8, "little") + header[8 : 8 + length] + b" "
                         + header[8 + length :])  # fmt: skip
    with HfCheckpoint.open(folder) as checkpoint:
        for name, array in meta.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)


# --- what may differ --------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_tied_embeddings(small: Path, tmp_path: Path, keep: bool) -> None:
    def tie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if not keep:
            del tensors["lm_head.weight"]

    folder = hf_folder(tmp_path / "x", small, change=tie, tie_word_embeddings=True)
    with HfCheckpoint.open(folder) as checkpoint:
        np.testing.assert_array_equal(
            checkpoint.read("output.weight"), checkpoint.read("tok_embeddings.weight")
        )
        assert "embedding table" in checkpoint.notes[-1]
    report = llama2q.convert(folder, tmp_path / "x.l2q", n_threads=1, method="rtn")
    with L2qFile(report.path) as file:
        file.verify()
    if not keep:
        change_json(folder / "config.json", tie_word_embeddings="absent")
        refused(folder, TensorSetError, r"missing 1 \(lm_head\.weight\)")


def test_an_output_of_its_own_is_not_tied(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", small, tie_word_embeddings=True)
    refused(folder, TensorSetError, "lm_head.weight differs from model.embed_tokens.weight")


@pytest.mark.parametrize("form", ["safetensors", "bin-sharded"])
def test_stored_rotary_frequencies_are_dropped(small: Path, tmp_path: Path, form: str) -> None:
    def add(tensors: Tensors) -> None:
        for layer in range(2):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.uint16)

    folder = hf_folder(tmp_path / "x", small, form, change=add)
    with HfCheckpoint.open(folder) as checkpoint, open_checkpoint(small) as meta:
        assert checkpoint.shapes == meta.shapes


def test_defaults_of_absent_keys(small: Path, tmp_path: Path) -> None:
    absent = ("rope_theta", "rope_scaling", "max_position_embeddings", "vocab_size", "hidden_act",
              "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id")  # fmt: skip
    folder = hf_folder(tmp_path / "x", small, **dict.fromkeys(absent, "absent"))
    with HfCheckpoint.open(folder) as checkpoint:
        assert (checkpoint.config.max_seq_len, checkpoint.config.rope_theta) == (2048, 10000.0)
        assert checkpoint.config.vocab_size == 4096


# --- sets, shapes and places ------------------------------------------------------------------


def rename(old: str, new: str) -> Any:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.pop("model.norm.weight"), TensorSetError, r"missing 1 \(model\.norm\.weight"),
        (lambda t: t.update(x=t["model.norm.weight"]), TensorSetError, r"unexpected 1 \(x\)"),
        (lambda t: t.pop("model.embed_tokens.weight"), TensorSetError, "lack model.embed_tokens"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:8]}),
            TensorSetError,
            r"has the shape \(8,\); config.json makes it \(16,\)",
        ),
        (
            lambda t: t.update(
                {"lm_head.weight": t["lm_head.weight"].astype(np.float32)}
            ),
            TensorSetError,
            "different dtypes, expected one .*bf16: .*f32: lm_head.weight",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.float64)}),
            TensorSetError,
            "lm_head.weight has the dtype f64",
        ),
        (
            rename("model.layers.0.self_attn.q_proj.weight",
                   "model.layers.0.self_attn.q_proj.qweight"),
            UnsupportedModelError,
            "quantized already",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.uint16)}),
            UnsupportedModelError,
            "does not compute biases",
        ),
        (
            lambda t: t.update(
                {"base_model.model.x.lora_A.weight": np.zeros((1, 16), np.uint16)}
            ),
            UnsupportedModelError,
            "LoRA adapter",
        ),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(
    small: Path, tmp_path: Path, change: Any, error: type[Exception], match: str
) -> None:
    refused(hf_folder(tmp_path / "x", small, change=change), error, match)


def test_the_vocabulary_must_agree(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", small, vocab_size=4097)
    refused(folder, ParamsError, "says vocab_size 4097; model.embed_tokens.weight has 4096 rows")
    change_json(folder / "config.json", vocab_size=4096, num_hidden_layers=10**6)
    refused(folder, TensorSetError, "1000000 layers; the weights are 21 tensors")


def test_the_index_must_agree(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", small, "safetensors-sharded")
    index = folder / INDEX
    sound = index.read_text()
    import json

    placement: dict[str, str] = json.loads(sound)["weight_map"]
    names = sorted(set(placement.values()))
    first = "model.norm.weight"
    other = next(name for name in names if name != placement[first])
    for changed, match in (
        ({**placement, first: other}, f"places {first} in {other}; it is in {placement[first]}"),
        ({**placement, "x": other}, f"places 'x' in {other}, which does not hold it"),
        ({k: v for k, v in placement.items() if k != first}, f"does not name {first}, which"),
    ):
        write_json(index, {"weight_map": changed})
        refused(folder, ShardIndexError, match)
    index.write_text(sound)
    meta, config = read_meta(small)
    tensors = hf_tensors(meta, config)
    held = {name: tensors[name] for name in tensors if placement[name] == other}
    write_safetensors(folder / other, {**held, first: tensors[first]})
    refused(folder, TensorSetError, f"{first} is in .* and in .*; expected each tensor once")


# --- damage, interruption, the hub's cache ----------------------------------------------------


def test_damaged_bin(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", small, "bin")
    path = folder / "pytorch_model.bin"
    with HfCheckpoint.open(folder) as checkpoint:
        needle = checkpoint.read("layers.1.attention.wo.weight").tobytes()
    content = path.read_bytes()
    at = content.index(needle) + 5
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(CorruptShardError, match=r"self_attn\.o_proj\.weight .*fails its CRC"):
        llama2q.convert(folder, tmp_path / "x.l2q", n_threads=1, method="rtn")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".l2q"] == []


def test_interruption_resumes(small: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "src", small, "safetensors-sharded")
    whole = llama2q.convert(folder, tmp_path / "whole.l2q", n_threads=1, method="rtn")
    calls: list[str] = []

    def stop(done: int, total: int, name: str) -> None:
        calls.append(name)
        if len(calls) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama2q.convert(folder, tmp_path / "x.l2q", progress=stop, n_threads=1, method="rtn")
    assert (tmp_path / "x.l2q.part.journal").exists()
    llama2q.convert(folder, tmp_path / "x.l2q", n_threads=1, method="rtn")
    assert (tmp_path / "x.l2q").read_bytes() == whole.path.read_bytes()


def test_the_hubs_cache(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = hf_folder(tmp_path / "plain", small, "safetensors-sharded")
    (plain / "LICENSE.txt").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    snapshot = as_hub_cache(plain, tmp_path / "hub", "meta-llama/Llama-2-7b-chat-hf")
    report = llama2q.convert(snapshot, n_threads=1, method="rtn")
    assert report.path == Path("Llama-2-7b-chat-hf-int4.l2q")
    assert (report.template, report.n_checksums) == ("llama2-chat", 4)
    again = llama2q.convert(
        snapshot.parent.parent, tmp_path / "again.l2q", n_threads=1, method="rtn"
    )
    local = llama2q.convert(plain, chat_template="llama-2", n_threads=1, method="rtn")
    assert report.model_id == again.model_id == local.model_id
    with L2qFile(local.path) as file:
        assert list(file.metadata.licences) == ["LICENSE.txt"]
        assert file.metadata.attribution is not None
    blob = (snapshot / "model-00001-of-00003.safetensors").resolve()
    damaged = bytearray(blob.read_bytes())
    damaged[-2] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(ChecksumError, match=r"its blob in Hugging Face's cache is named"):
        llama2q.convert(snapshot, tmp_path / "x.l2q", n_threads=1, method="rtn")
    assert not (tmp_path / "x.l2q").exists()
    llama2q.convert(snapshot, tmp_path / "x.l2q", n_threads=1, verify_checksums=False, method="rtn")


def test_snapshots_of_the_hubs_cache(small: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(hf_folder(tmp_path / "plain", small), tmp_path / "hub")
    root = snapshot.parent.parent
    (root / "refs" / "main").unlink()
    with open_checkpoint(root) as checkpoint:
        assert checkpoint.name == "Small-7b"
    (snapshot.parent / ("0" * 40)).mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"its snapshots are: 0000.*Try: llama2q"):
        open_checkpoint(root)
    (root / "refs" / "main").write_text("../../../etc")
    with pytest.raises(CheckpointNotFoundError, match=r"its snapshots are"):
        open_checkpoint(root)


def test_metas_form_in_the_hubs_cache(small: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(small, tmp_path / "hub", "meta-llama/Llama-2-7b-chat")
    with open_checkpoint(snapshot) as checkpoint:
        assert (checkpoint.name, checkpoint.template) == ("Llama-2-7b-chat", "llama2-chat")
