"""Cases of whole folders: shards, tokenizers, and what a folder holds instead of a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from converter.pth_files import small_checkpoint, small_tensors
from hostile.bench import SHARD, TOKENIZER, Bench, CannotMakeError, Table
from llama2q.errors import (
    CheckpointNotFoundError,
    Llama2qError,
    MissingShardError,
    ParamsError,
    ShardFormatError,
    TensorSetError,
    TokenizerError,
    TruncatedShardError,
    UnreadableFileError,
)

CASES = Table()


def shard(number: int) -> str:
    return f"consolidated.{number:02d}.pth"


def of_shards(n_shards: int, change: Callable[[Path], object]) -> Callable[[Bench], Path]:
    """Write the checkpoint in n shards, then change the folder."""

    def make(bench: Bench) -> Path:
        folder = bench.shards(n_shards)
        change(folder)
        return folder

    return make


def of_one(change: Callable[[Path], object]) -> Callable[[Bench], Path]:
    """Copy the checkpoint in one shard, then change the folder."""

    def make(bench: Bench) -> Path:
        folder = bench.checkpoint()
        change(folder)
        return folder

    return make


# --- shards -----------------------------------------------------------------------------------

for _number in (0, 1, 2):
    CASES.add(
        f"shards-missing-{_number}",
        MissingShardError,
        f"{shard(_number)} is missing: the checkpoint has 4 shards",
        of_shards(4, lambda folder, n=_number: (folder / shard(n)).unlink()),
    )
CASES.add("shards-missing-last", MissingShardError, f"{shard(3)} is missing: the checkpoint has 4",
          of_shards(4, lambda folder: (folder / shard(3)).unlink()))  # fmt: skip
CASES.add("shards-missing-two", MissingShardError,
          f"{shard(1)}, {shard(2)} are missing: the checkpoint has 4 shards; found 00, 03",
          of_shards(4, lambda f: [(f / shard(n)).unlink() for n in (1, 2)]))  # fmt: skip
CASES.add("shards-one-too-many", TensorSetError, "02.pth was saved as consolidated.01.pth",
          of_shards(2, lambda f: shutil.copyfile(f / shard(1), f / shard(2))))  # fmt: skip
CASES.add("shards-far-number", MissingShardError, "are missing: the checkpoint has 100 shards",
          of_shards(2, lambda f: shutil.copyfile(f / shard(1), f / shard(99))))  # fmt: skip


def swapped(folder: Path) -> None:
    """Exchange the shards of a model; their tensors have the same shapes."""
    first, second, third = folder / shard(0), folder / shard(1), folder / "other"
    first.rename(third)
    second.rename(first)
    third.rename(second)


CASES.add("shards-swapped", TensorSetError, "consolidated.00.pth was saved as consolidated.01",
          of_shards(2, swapped))  # fmt: skip
CASES.add("shards-duplicated", TensorSetError, "consolidated.01.pth was saved as consolidated.00",
          of_shards(2, lambda f: shutil.copyfile(f / shard(0), f / shard(1))))  # fmt: skip


def foreign(bench: Bench) -> Path:
    """Take shard 1 from another model of the same shape."""
    folder = bench.shards(2)
    other = small_checkpoint(bench.folder / "other", TOKENIZER, tensors=small_tensors(seed=1))
    halves = bench.shards(2, "halves", other)
    shutil.copyfile(halves / shard(1), folder / shard(1))
    return folder


def other_split(bench: Bench) -> Path:
    """Take shard 1 from a split into four."""
    folder = bench.shards(2)
    shutil.copyfile(bench.shards(4, "four") / shard(1), folder / shard(1))
    return folder


CASES.add("shards-of-another-model", TensorSetError, "are they of one download?", foreign)
CASES.add("shards-of-another-split", TensorSetError, "that is a part of", other_split)
for _percent in (5, 30, 60, 95):
    CASES.add(
        f"shards-cut-{_percent}",
        TruncatedShardError,
        "consolidated.01.pth is truncated",
        of_shards(
            2,
            lambda folder, percent=_percent: os.truncate(
                folder / shard(1), (folder / shard(1)).stat().st_size * percent // 100
            ),
        ),
    )
CASES.add("shards-one-empty", TruncatedShardError, "consolidated.03.pth is empty",
          of_shards(4, lambda f: (f / shard(3)).write_bytes(b"")))  # fmt: skip
CASES.add("shards-one-is-a-folder", UnreadableFileError, "consolidated.01.pth is a folder",
          of_shards(2, lambda f: [(f / shard(1)).unlink(), (f / shard(1)).mkdir()]))  # fmt: skip

# --- not a file of ours -----------------------------------------------------------------------

_PAGES = {
    "html": b"<!DOCTYPE html>\n<html><body>403</body></html>",
    "html-upper": b"\xef\xbb\xbf \r\n<HTML>",
    "s3-error": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
}
for _label, _page in _PAGES.items():
    CASES.add(
        f"web-page-{_label}",
        ShardFormatError,
        "consolidated.00.pth is a web page: the signed URL from Meta expired (24 hours)",
        lambda bench, page=_page: bench.with_shard(page),
    )
for _label, _data, _sentence in (
    ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    ("gguf", b"GGUF\x03\0\0\0" + bytes(500), "expected a zip archive"),
    ("safetensors", b"\x02\0\0\0\0\0\0\0{}", "expected a zip archive"),
    ("gzip", b"\x1f\x8b\x08" + bytes(500), "expected a zip archive"),
    ("elf", b"\x7fELF" + bytes(500), "expected a zip archive"),
    ("noise", np.random.default_rng(0).bytes(5000), "expected a zip archive"),
):
    CASES.add(f"shard-{_label}", ShardFormatError, _sentence,
              lambda bench, data=_data: bench.with_shard(data))  # fmt: skip

# --- tokenizers -------------------------------------------------------------------------------

_MODEL = TOKENIZER.read_bytes()


def tokenizer(name: str, data: bytes, sentence: str) -> None:
    CASES.add(
        f"tokenizer-{name}", TokenizerError, sentence,
        of_one(lambda folder: (folder / "tokenizer.model").write_bytes(data)),
    )  # fmt: skip


def varint(value: int) -> bytes:
    data = b""
    while value >= 128:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def pieces(n: int, first: tuple[int, ...] = (2, 3, 3), word: bytes = b"w%d") -> bytes:
    """A SentencePiece model of n pieces: unk, bos and eos, then words."""
    model = b""
    for i in range(n):
        kind = first[i] if i < len(first) else 1
        text = ("<unk>", "<s>", "</s>")[i].encode() if i < 3 else word % i
        piece = b"\n" + varint(len(text)) + text + b"\x15" + bytes(4) + b"\x18" + bytes([kind])
        model += b"\n" + varint(len(piece)) + piece
    return model


for _share in (1, 25, 50, 99):
    tokenizer(f"cut-{_share}", _MODEL[: len(_MODEL) * _share // 100], "tokenizer.model")
tokenizer("cut-last-byte", _MODEL[:-1], "is not a SentencePiece model")
tokenizer("empty", b"", "has no bytes; expected a SentencePiece model")
tokenizer("zeros", bytes(5000), "is not a SentencePiece model")
tokenizer("noise", np.random.default_rng(1).bytes(20_000), "is not a SentencePiece model")
tokenizer("text", b"hello world\n" * 50, "is not a SentencePiece model")
tokenizer("json", json.dumps({"model": {"type": "BPE"}}).encode(), "is not a SentencePiece model")
tokenizer("web-page", _PAGES["html"], "tokenizer.model is a web page")
tokenizer("git-lfs", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")
tokenizer("huge", bytes((1 << 26) + 1), "has over 67108864 bytes")
tokenizer("smaller", pieces(100), "tokenizer.model has 100 pieces; tok_embeddings has 4096 rows")
tokenizer("one-more", pieces(4097), "has 4097 pieces; tok_embeddings has 4096 rows")
tokenizer("no-unk", pieces(4096, (1, 3, 3)), "tokenizer.model")
tokenizer("no-control", pieces(4096, (2, 1, 1)), "a Llama 2 tokenizer has (0, 1, 2)")
tokenizer("not-utf8", pieces(4096, word=b"\x80%d"), "is damaged: piece 3 is not UTF-8")
tokenizer("doubled", _MODEL + _MODEL, "tokenizer.model")
tokenizer("length-lie", b"\n" + varint(2**31 - 1) + b"x", "is not a SentencePiece model")
tokenizer("length-overflow", b"\n" + b"\xff" * 9 + b"\x01", "is not a SentencePiece model")
tokenizer("unending-varint", b"\n" + b"\xff" * 100, "is not a SentencePiece model")
tokenizer("nested-groups", b"\x0b" * 10_000, "is not a SentencePiece model")
CASES.add("tokenizer-absent", TokenizerError, "tokenizer.model is neither in",
          of_one(lambda folder: (folder / "tokenizer.model").unlink()))  # fmt: skip

# --- folders ----------------------------------------------------------------------------------


def folder_case(
    name: str,
    sentence: str,
    make: Callable[[Bench], Path],
    error: type[Llama2qError] = CheckpointNotFoundError,
) -> None:
    CASES.add(f"folder-{name}", error, sentence, make)


def models(bench: Bench) -> Path:
    bench.checkpoint("llama/llama-2-7b")
    bench.checkpoint("llama/llama-2-13b")
    return bench.folder / "llama"


def made(bench: Bench, *files: str) -> Path:
    folder = bench.folder / "llama"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    return folder


def linked(name: str, target: str) -> Callable[[Path], None]:
    """Replace a file by a link to elsewhere in its folder."""

    def change(folder: Path) -> None:
        if sys.platform == "win32":
            raise CannotMakeError("symbolic links need a right on Windows")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    """Replace a file by a pipe: who opens it waits for ever."""

    def change(folder: Path) -> None:
        if sys.platform == "win32":
            raise CannotMakeError("named pipes are POSIX")
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def loop(bench: Bench) -> Path:
    folder = made(bench)
    linked("a", "b")(folder)
    linked("b", "a")(folder)
    return folder / "a"


def unreadable(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).chmod(0)
        if os.access(folder / name, os.R_OK):
            (folder / name).chmod(0o600)
            raise CannotMakeError("this user reads every file, whatever its mode")

    return change


folder_case("absent", "does not exist", lambda bench: bench.folder / "none")
folder_case("empty", "is empty; expected consolidated.00.pth", lambda bench: made(bench))
folder_case("of-models", "holds llama-2-13b/ and llama-2-7b/, not weights. Try: llama2q-convert",
            models)  # fmt: skip
folder_case("a-shard", "is a file; give the folder that holds", lambda b: b.checkpoint() / SHARD)
folder_case("of-photos", "holds no consolidated.00.pth (found a.jpg, b.jpg)",
            lambda bench: made(bench, "b.jpg", "a.jpg"))  # fmt: skip
folder_case("many-files", "(found 000, 001, 002, 003, 004, ...)",
            lambda bench: made(bench, *(f"{i:03d}" for i in range(500))))  # fmt: skip
folder_case("hugging-face", "config.json is not valid JSON",
            lambda bench: made(bench, "config.json", "model.safetensors"), ParamsError)  # fmt: skip
folder_case("link-loop", "does not exist", loop)
folder_case("shard-is-a-loop", "consolidated.00.pth is a link to nothing",
            of_one(linked(SHARD, SHARD)), UnreadableFileError)  # fmt: skip
folder_case("shard-is-a-dead-link", "consolidated.00.pth is a link to nothing",
            of_one(linked(SHARD, "../blobs/0123")), UnreadableFileError)  # fmt: skip
folder_case("shard-is-a-pipe", "consolidated.00.pth is no ordinary file", of_one(pipe(SHARD)),
            UnreadableFileError)  # fmt: skip
folder_case("params-is-a-loop", "params.json is missing",
            of_one(linked("params.json", "params.json")), ParamsError)  # fmt: skip
folder_case("params-is-a-pipe", "params.json is missing", of_one(pipe("params.json")), ParamsError)
folder_case("tokenizer-is-a-loop", "tokenizer.model is neither in",
            of_one(linked("tokenizer.model", "tokenizer.model")), TokenizerError)  # fmt: skip
folder_case("tokenizer-is-a-pipe", "tokenizer.model is neither in",
            of_one(pipe("tokenizer.model")), TokenizerError)  # fmt: skip
for _name in (SHARD, "params.json", "tokenizer.model"):
    folder_case(
        f"unreadable-{_name.partition('.')[0]}", f"{_name} cannot be read: Permission denied",
        of_one(unreadable(_name)), UnreadableFileError,
    )  # fmt: skip
folder_case("unreadable-itself", "cannot be read: Permission denied", of_one(unreadable(".")),
            UnreadableFileError)  # fmt: skip
