"""Where `build` finds the model file of a checkpoint folder."""

from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path

import pytest

import llama2q
from converter.pth_files import small_checkpoint
from llama2q.compat import meta
from llama2q.compat.model_file import model_file, require_tokenizer
from llama2q.errors import CheckpointNotFoundError, InvalidArgumentError, TokenizerError


@pytest.fixture
def folder(tmp_path: Path, mini_checkpoint: Path) -> Path:
    """A small checkpoint."""
    path: Path = small_checkpoint(tmp_path / "llama" / "tiny", mini_checkpoint / "tokenizer.model")
    return path


def convert(folder: Path, path: Path) -> Path:
    llama2q.convert(folder, path, method="rtn", n_threads=1)
    return path


def test_a_file(mini_file: Path) -> None:
    assert model_file(mini_file) == mini_file
    assert model_file(str(mini_file)) == mini_file


@pytest.mark.parametrize("place", ["tiny-int4.l2q", "tiny-bf16.l2q", "tiny/any.l2q"])
def test_found_in_the_folder_or_beside_it(folder: Path, place: str) -> None:
    path = convert(folder, folder.parent / place)
    (folder.parent / "tiny-chat-int4.l2q").write_bytes(b"of another checkpoint")
    assert model_file(folder) == path


def test_several(folder: Path) -> None:
    for name in ("tiny-int4.l2q", "tiny-int8.l2q"):
        convert(folder, folder.parent / name)
    with pytest.raises(InvalidArgumentError, match=r"several model files: .*int4.*int8\.l2q; give"):
        model_file(folder)


def test_of_other_weights(folder: Path) -> None:
    convert(folder, folder.parent / "tiny-int4.l2q")
    with (folder / "consolidated.00.pth").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InvalidArgumentError, match=r"made from another consolidated\.00\.pth"):
        model_file(folder)


def test_of_weights_that_are_gone(folder: Path) -> None:
    path = convert(folder, folder.parent / "tiny-int4.l2q")
    (folder / "consolidated.00.pth").unlink()
    assert model_file(folder) == path


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere does not exist"):
        model_file(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFoundError, match=r"llama2q-convert|consolidated"):
        model_file(tmp_path)


def test_made_once_beside_the_folder(
    mini_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "llama" / "tiny"
    shutil.copytree(mini_checkpoint, folder)
    tokenizer = folder / "tokenizer.model"
    quickly = functools.partial(llama2q.convert, method="rtn")
    monkeypatch.setattr("llama2q.converter.converter.convert", quickly)
    with caplog.at_level(logging.WARNING, "llama2q.compat"):
        with meta.Llama.build(folder, tokenizer, max_seq_len=64, max_batch_size=1) as generator:
            (result,) = generator.text_completion(["Hello"], max_gen_len=3)
        path = folder.parent / "tiny-int4.l2q"
        made = path.stat().st_mtime_ns
        assert result["generation"]
        assert model_file(folder) == path
    assert path.stat().st_mtime_ns == made
    (record,) = caplog.records
    assert "converting" in record.message


def test_tokenizer_with_added_tokens(folder: Path, mini_checkpoint: Path, tmp_path: Path) -> None:
    path = convert(folder, tmp_path / "x.l2q")
    require_tokenizer(path, mini_checkpoint / "tokenizer.model")
    shorter = tmp_path / "shorter.model"
    shutil.copyfile(mini_checkpoint / "tokenizer.model", shorter)
    with shorter.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TokenizerError, match=r"is not the tokenizer that x\.l2q was made with"):
        require_tokenizer(path, shorter)
