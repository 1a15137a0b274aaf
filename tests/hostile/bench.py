"""What a hostile case is made with: a sound small checkpoint and the tools to break it."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.pth_files import small_checkpoint
from llama2q import errors
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.shards import split

TESTS = Path(__file__).resolve().parents[1]
TOKENIZER = TESTS / "data" / "mini" / "tokenizer.model"
SHARD = "consolidated.00.pth"
ROOT = "consolidated.00"
"""The root folder inside the sound shard's archive."""


class CannotMakeError(Exception):
    """The case cannot be set up here; the text says why."""


class Bench:
    """A folder of its own for one case, and the sound checkpoint that cases start from."""

    def __init__(self, folder: Path, sound: Path) -> None:
        self.folder = folder
        self.sound = sound

    @staticmethod
    def write_sound(folder: Path) -> Path:
        """Write the checkpoint that all cases start from, once."""
        return small_checkpoint(folder, TOKENIZER)

    def checkpoint(self, name: str = "model") -> Path:
        """Copy the sound checkpoint into this case's folder."""
        return shutil.copytree(self.sound, self.folder / name)

    def shards(self, n_shards: int, name: str = "model", source: Path | None = None) -> Path:
        """Write the sound checkpoint in n shards."""
        folder = self.folder / name
        folder.mkdir()
        with MetaCheckpoint.open(source or self.sound) as checkpoint:
            split(checkpoint, folder, n_shards)
        return folder

    def entries(self) -> dict[str, bytes]:
        """Return the sound shard's archive: entry name -> content."""
        with zipfile.ZipFile(self.sound / SHARD) as file:
            return {name: file.read(name) for name in file.namelist()}

    def pickle(self) -> bytes:
        """Return the sound shard's pickle."""
        return self.entries()[f"{ROOT}/data.pkl"]

    def with_entries(
        self, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
    ) -> Path:
        """Copy the checkpoint, with a shard of other entries."""
        folder = self.checkpoint()
        with zipfile.ZipFile(folder / SHARD, "w", compression) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of duplicate names
            for name, data in entries.items():
                file.writestr(name, data)
        return folder

    def with_pickle(self, data: bytes) -> Path:
        """Copy the checkpoint, with another pickle in its shard."""
        return self.with_entries({**self.entries(), f"{ROOT}/data.pkl": data})

    def with_shard(self, data: bytes) -> Path:
        """Copy the checkpoint, with other bytes as its shard."""
        folder = self.checkpoint()
        (folder / SHARD).write_bytes(data)
        return folder


Make = Callable[[Bench], Path]
"""Builds a broken checkpoint and returns what to convert."""


@dataclass(frozen=True, slots=True)
class Case:
    """A broken checkpoint.

    Attributes
    ----------
    name : str
        Letters, digits and hyphens.
    error : class
        What `convert` must raise, exactly.
    sentence : str
        A part of its message.
    make : callable
    """

    name: str
    error: type[errors.Llama2qError]
    sentence: str
    make: Make


class Table(dict[str, Case]):
    """Cases by name."""

    def add(self, name: str, error: type[errors.Llama2qError], sentence: str, make: Make) -> None:
        """Add a case; its name must be new."""
        if name in self:
            raise ValueError(f"two cases are named {name}")
        self[name] = Case(name, error, sentence, make)
