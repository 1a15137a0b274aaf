"""Files of a Hugging Face folder: which are read, what an index may name, what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.hf_files import INDEX, hf_folder, write_json
from converter.pth_files import Make
from llama2q.converter.hf_folder import find_hugging_face, read_index
from llama2q.errors import (
    CheckpointNotFoundError,
    MissingShardError,
    ShardIndexError,
    UnreadableFileError,
)

SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def sharded(make: Make, tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "x", make(), "safetensors-sharded")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "../../x.safetensors", "/x.safetensors", "a/x.safetensors",
     "a\\x.safetensors", "C:x.safetensors", "..safetensors", "x.bin", "x", "", 7, None],
)  # fmt: skip
def test_names_that_leave_the_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / INDEX).write_text("{}")
    write_json(tmp_path / INDEX, {"weight_map": {"a": name}})
    with pytest.raises(ShardIndexError, match=r"the plain name of a \.safetensors file"):
        read_index(tmp_path / INDEX, ".safetensors")


def test_the_files_of_a_sharded_model(sharded: Path) -> None:
    (sharded / "added_tokens.json").write_text("{}")
    found = find_hugging_face(sharded)
    assert [path.name for path in found.sources] == [
        *SHARDS, INDEX, "config.json", "tokenizer.model", "added_tokens.json",
    ]  # fmt: skip
    assert found.name == "x"
    assert found.placement is not None
    assert set(found.placement.values()) == set(SHARDS)


def test_safetensors_come_before_pickles(make: Make, tmp_path: Path) -> None:
    meta = make()
    folder = hf_folder(tmp_path / "x", meta, "bin")
    assert [path.name for path in find_hugging_face(folder).weights] == ["pytorch_model.bin"]
    hf_folder(folder, meta, "bin-sharded")
    assert [path.name for path in find_hugging_face(folder).weights] == ["pytorch_model.bin"]
    hf_folder(folder, meta, "safetensors-sharded")
    assert [path.name for path in find_hugging_face(folder).weights] == SHARDS
    hf_folder(folder, meta)
    assert [path.name for path in find_hugging_face(folder).weights] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("removed", "match"),
    [
        ([0], f"^{SHARDS[0]} is missing: {INDEX} names 3 files; found {SHARDS[1]}, {SHARDS[2]}; d"),
        ([0, 2], f"^{SHARDS[0]}, {SHARDS[2]} are missing: .*; found {SHARDS[1]}; download"),
        ([0, 1, 2], "found none; download it again"),
    ],
)
def test_missing_shards(sharded: Path, removed: list[int], match: str) -> None:
    for number in removed:
        (sharded / SHARDS[number]).unlink()
    with pytest.raises(MissingShardError, match=match):
        find_hugging_face(sharded)


def test_an_index_that_is_missing(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(ShardIndexError, match=f"{INDEX} is missing beside {SHARDS[0]}"):
        find_hugging_face(sharded)
    for name in SHARDS:
        (sharded / name).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no weights \(found .config\.json., .tok"):
        find_hugging_face(sharded)


def test_dangling_links(make: Make, tmp_path: Path) -> None:
    """What an interrupted download leaves in the hub's cache."""
    folder = hf_folder(tmp_path / "x", make())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(UnreadableFileError, match=r"model\.safetensors is a link to nothing"):
        find_hugging_face(folder)
