"""`convert` compares files with checklist.chk, and checks by CRC-32 what no list covers."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llama2q.config import ModelConfig
from llama2q.converter import sources
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.converter import ConvertReport, convert_with
from llama2q.converter.job import Options
from llama2q.converter.terms import TERMS, terms_of
from llama2q.errors import ChecklistError, ChecksumError, CorruptShardError
from llama2q.format.metadata import Metadata
from llama2q.format.recipe import Recipe
from numpy_quantizers import NumpyQuantizers

SHARD = "consolidated.00.pth"


@pytest.fixture
def folder(mini_checkpoint: Path, tmp_path: Path) -> Path:
    """The demo model with the list of its files' MD5 sums."""
    folder = tmp_path / "mini"
    shutil.copytree(mini_checkpoint, folder)
    write_list(folder, SHARD, "params.json", "tokenizer.model")
    return folder


def write_list(folder: Path, *names: str) -> None:
    lines = [f"{hashlib.md5((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "checklist.chk").write_text("".join(lines))


def convert(src: Path, dst: Path, group_size: int = 64, **arguments: Any) -> ConvertReport:
    options = Options(method="rtn", group_size=group_size)
    return convert_with(NumpyQuantizers(), src, dst, options, **arguments)


def damage(path: Path) -> None:
    """Flip a bit in the middle, where the weights are."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_files_that_are_right(folder: Path, tmp_path: Path) -> None:
    report = convert(folder, tmp_path / "x.l2q")
    assert report.n_checksums == 3
    report = convert(folder, tmp_path / "y.l2q", verify_checksums=False)
    assert report.n_checksums == 0
    assert (tmp_path / "x.l2q").read_bytes() == (tmp_path / "y.l2q").read_bytes()


@pytest.mark.parametrize("name", [SHARD, "params.json", "tokenizer.model"])
def test_a_file_that_differs(folder: Path, tmp_path: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    digest = hashlib.md5(data).hexdigest()
    listing = folder / "checklist.chk"
    listing.write_text(listing.read_text().replace(digest, "0" * 32))
    with pytest.raises(ChecksumError, match=f"{name} has the MD5 {digest}; checklist.chk expects"):
        convert(folder, tmp_path / "x.l2q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini"]
    convert(folder, tmp_path / "x.l2q", verify_checksums=False)


def test_damage_is_found_by_md5_or_by_crc(folder: Path, tmp_path: Path) -> None:
    damage(folder / SHARD)
    with pytest.raises(ChecksumError):
        convert(folder, tmp_path / "x.l2q")
    with pytest.raises(CorruptShardError):
        convert(folder, tmp_path / "x.l2q", verify_checksums=False)
    write_list(folder, "params.json")  # the shard is not covered
    with pytest.raises(CorruptShardError):
        convert(folder, tmp_path / "x.l2q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini"]


def test_a_listed_file_that_is_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "checklist.chk").write_text(f"{'0' * 32}  consolidated.01.pth\n")
    with pytest.raises(ChecklistError, match=r"consolidated\.01\.pth is missing"):
        convert(folder, tmp_path / "x.l2q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini"]


def test_crc_is_left_to_the_md5(
    folder: Path,
    split_small: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    original = MetaCheckpoint.check_crc

    def record(self: MetaCheckpoint, name: str, except_in: object = ()) -> None:
        checked.extend(f.path.name for f in self._files if f.path not in except_in)  # type: ignore[operator]
        original(self, name, except_in)  # type: ignore[arg-type]

    monkeypatch.setattr(MetaCheckpoint, "check_crc", record)
    convert(folder, tmp_path / "x.l2q")
    assert checked == []
    shards = split_small(2)
    write_list(shards, SHARD)
    convert(shards, tmp_path / "y.l2q", group_size=32)
    assert set(checked) == {"consolidated.01.pth"}


def test_progress_goes_on_while_only_checksums_are_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = sources._HashedFile.advance

    def slowly(self: sources._HashedFile, buffer: bytearray, beside: ThreadPoolExecutor) -> None:
        if self.path.name == "tokenizer.model" and not self.position:
            time.sleep(3)
        advance(self, buffer, beside)

    monkeypatch.setattr(sources._HashedFile, "advance", slowly)
    calls: list[tuple[int, int, str]] = []
    convert(folder, tmp_path / "x.l2q", progress=lambda *call: calls.append(call))
    total = calls[-1][1]
    assert (total, total, "checking tokenizer.model (99 % of the source)") in calls
    assert calls[-1] == (total, total, "")


def metadata(template: str = "base", licence: str = "", dim: int = 64) -> Metadata:
    config = ModelConfig(
        dim=dim,
        hidden_dim=64,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        vocab_size=32000,
        norm_eps=1e-5,
    )
    recipe = Recipe.for_model(config, "int4")
    return Metadata(config, recipe, template=template, licences={"LICENSE": licence})


def test_metas_terms() -> None:
    assert terms_of(metadata()) is None
    assert terms_of(metadata(licence="MIT License")) is None
    assert terms_of(metadata(licence="LLAMA 2 COMMUNITY LICENSE AGREEMENT")) == TERMS
    assert terms_of(metadata(template="llama2-chat")) == TERMS
    assert terms_of(metadata(dim=4096)) == TERMS
