"""Folders: shards, tokenizer and licences found, and folders that hold something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.hf_files import hf_folder
from converter.pth_files import (
    Make,
)
from converter.pth_files import (
    checkpoint_refused as refused,
)
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.forms import open_checkpoint
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.converter.meta_tensors import split_dim
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InvalidArgumentError,
    MissingShardError,
    ParamsError,
    ShardFormatError,
    TensorSetError,
    TokenizerError,
    TruncatedShardError,
)


def test_the_chat_template_goes_by_the_folders_own_name(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("Llama-2-7B-Chat")
    with MetaCheckpoint.open(folder) as checkpoint:
        assert checkpoint.template == "llama2-chat"
    monkeypatch.chdir(folder)
    with MetaCheckpoint.open(".") as checkpoint:
        assert checkpoint.template == "llama2-chat"
        assert checkpoint.folder == folder
    with MetaCheckpoint.open(make("chat/base")) as checkpoint:
        assert checkpoint.template == "base"


def test_tokenizer_and_licences_one_folder_up(make: Make) -> None:
    folder = make()
    (folder / "tokenizer.model").rename(folder.parent / "tokenizer.model")
    (folder.parent / "LICENSE").write_text("above")
    (folder.parent / "USE_POLICY.md").write_text("policy \u00e9", encoding="utf-8")
    (folder / "LICENSE").write_text("beside")
    (folder / "LICENSE.txt").write_bytes(b"caf\xe9")
    (folder / "LICENSES").mkdir()
    with MetaCheckpoint.open(folder) as checkpoint:
        assert checkpoint.tokenizer_path == folder.parent / "tokenizer.model"
        assert checkpoint.tokenizer_bytes == checkpoint.tokenizer_path.read_bytes()
        assert checkpoint.licences == {
            "LICENSE": "beside",
            "LICENSE.txt": "caf\u00e9",
            "USE_POLICY.md": "policy \u00e9",
        }
        assert list(checkpoint.licences) == sorted(checkpoint.licences)


@pytest.mark.parametrize(
    ("n_shards", "removed", "match"),
    [
        (
            8,
            [3],
            r"^consolidated\.03\.pth is missing: the checkpoint has 8 shards; found 00-02, 04-07",
        ),
        (8, [0, 2, 6], r"consolidated\.00\.pth, .*02.*06\.pth are missing: .*found 01, 03-05, 07"),
        (8, [7], r"consolidated\.07\.pth is missing: the checkpoint has 8 shards .*found 00-06"),
        (2, [1], r"consolidated\.01\.pth is missing: the checkpoint has 2 shards"),
    ],
)
def test_missing_shards(
    split_small: Callable[[int], Path], n_shards: int, removed: list[int], match: str
) -> None:
    folder = split_small(n_shards)
    for number in removed:
        (folder / f"consolidated.{number:02d}.pth").unlink()
    refused(folder, MissingShardError, match)


def test_shards_of_two_downloads(split_small: Callable[[int], Path], make: Make) -> None:
    folder = split_small(2)
    shutil.copyfile(make() / "consolidated.00.pth", folder / "consolidated.02.pth")
    refused(folder, TensorSetError, "was saved as consolidated.00.pth")
    (folder / "consolidated.02.pth").unlink()
    tensors = {}
    with MetaCheckpoint.open(folder) as checkpoint:
        for name, stored in checkpoint._files[1].tensors.items():
            tensors[name] = stored.array().copy()
    tensors["layers.1.ffn_norm.weight"][3] += 1
    write_pth(folder / "consolidated.01.pth", tensors, "bf16")
    refused(folder, TensorSetError, r"layers\.1\.ffn_norm\.weight differs between")


def test_norms_are_replicated() -> None:
    assert split_dim("layers.3.ffn_norm.weight") is None
    with pytest.raises(InvalidArgumentError, match="not a tensor"):
        split_dim("layers.3.ffn_norm.bias")


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", TruncatedShardError, r"consolidated\.01\.pth is empty"),
        (b"<html>", ShardFormatError, r"consolidated\.01\.pth is a web page"),
    ],
)
def test_bad_shards_are_named(
    split_small: Callable[[int], Path], content: bytes, error: type[CheckpointError], match: str
) -> None:
    folder = split_small(2)
    (folder / "consolidated.01.pth").write_bytes(content)
    refused(folder, error, match)


def test_truncated_shards_are_named(split_small: Callable[[int], Path]) -> None:
    folder = split_small(2)
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:90_000])
    refused(
        folder,
        TruncatedShardError,
        r"consolidated\.01\.pth is truncated \(90\.0 of 137\.4 kB\); run download\.sh again",
    )


def test_tokenizers_that_are_refused(make: Make, shared_dir: Path) -> None:
    folder = make()
    path = folder / "tokenizer.model"
    shutil.copyfile(shared_dir / "checkpoints" / "stories260K" / "tokenizer.model", path)
    refused(
        folder,
        TokenizerError,
        r"tokenizer\.model has 512 pieces; tok_embeddings has 4096 rows",
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "has no bytes"),
        (b"not a model at all", "not a SentencePiece model"),
        (b"<html>", r"tokenizer\.model is a web page"),
    ],
)
def test_tokenizer_files_that_are_refused(make: Make, content: bytes, match: str) -> None:
    folder = make()
    (folder / "tokenizer.model").write_bytes(content)
    refused(folder, TokenizerError, match)


def test_no_tokenizer(make: Make) -> None:
    folder = make()
    (folder / "tokenizer.model").unlink()
    refused(folder, TokenizerError, r"neither in .* nor in .*one folder above")


def test_a_folder_of_models(make: Make) -> None:
    parent = make("llama-2-7b").parent
    make("llama-2-13b")
    refused(
        parent,
        CheckpointNotFoundError,
        r"llama holds llama-2-13b/ and llama-2-7b/, not weights\. "
        r"Try: llama2q-convert .*llama-2-13b$",
    )


def test_forms_of_one_folder(make: Make, tmp_path: Path) -> None:
    """Meta's form comes first where a folder holds two."""
    meta = make()
    folder = hf_folder(tmp_path / "both", meta)
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, HfCheckpoint)
    for file in meta.iterdir():
        shutil.copyfile(file, folder / file.name)
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, MetaCheckpoint)


def test_a_folder_of_hugging_face_models(make: Make, tmp_path: Path) -> None:
    hf_folder(tmp_path / "models" / "vicuna-7b", make())
    refused_by_form = pytest.raises(
        CheckpointNotFoundError, match=r"holds vicuna-7b/, not weights\. Try: .*vicuna-7b$"
    )
    with refused_by_form:
        open_checkpoint(tmp_path / "models")


def test_weights_without_a_config(make: Make, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "x", make(), "safetensors-sharded")
    (folder / "config.json").unlink()
    with pytest.raises(ParamsError, match=r"config\.json is missing"):
        open_checkpoint(folder)


def test_folders_without_a_checkpoint(tmp_path: Path, make: Make) -> None:
    refused(tmp_path / "absent", CheckpointNotFoundError, "does not exist")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, CheckpointNotFoundError, r"is empty; expected consolidated\.00\.pth")
    (empty / "weights.gguf").touch()
    refused(empty, CheckpointNotFoundError, r"no consolidated\.00\.pth \(found weights\.gguf\)")
    file = make() / "consolidated.00.pth"
    refused(file, CheckpointNotFoundError, r"is a file; give the folder .*Try: llama2q-convert")
