"""What a file will hold and how large it will be, before anything is written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llama2q.errors import DiskSpaceError, Llama2qError, OutputError
from llama2q.format.header import HASH_PLACEHOLDER, build_header
from llama2q.format.layout import PlacedTensor, is_pad, place, tensor_specs
from llama2q.format.metadata import Metadata


@dataclass(frozen=True, slots=True)
class Outline:
    """The header and the tensors of a file.

    Attributes
    ----------
    header : bytes
        As long as the final one, with placeholders for the hashes.
    placed : tuple of PlacedTensor
        Tensors and pads, in the file's order.
    tensors : tuple of PlacedTensor
        The same without pads.
    """

    header: bytes
    placed: tuple[PlacedTensor, ...]
    tensors: tuple[PlacedTensor, ...]

    @classmethod
    def of(cls, metadata: Metadata, tokenizer_bytes: int) -> Self:
        """Lay out the file of a model.

        Parameters
        ----------
        metadata : Metadata
            Without hashes.
        tokenizer_bytes : int
            Size of the SentencePiece model.
        """
        placed = place(tensor_specs(metadata.config, metadata.recipe, tokenizer_bytes))
        tensors = tuple(tensor for tensor in placed if not is_pad(tensor.spec.name))
        hashes = {tensor.spec.name: HASH_PLACEHOLDER for tensor in tensors}
        strings = metadata.with_hashes(metadata.source, hashes).to_strings()
        header = build_header(placed, {**strings, "model_id": HASH_PLACEHOLDER})
        return cls(header, tuple(placed), tensors)

    @property
    def data_start(self) -> int:
        """Bytes before the data section."""
        return len(self.header)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_start + self.placed[-1].end

    @property
    def data_bytes(self) -> int:
        """Size of the tensors, without header and pads."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)

    def key(self, fingerprint: str, tokenizer: bytes) -> str:
        """Name sources and recipe: equal for two conversions that give the same file."""
        parts = self.header, fingerprint.encode(), hashlib.sha256(tokenizer).digest()
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def part_path(path: Path) -> Path:
    """Return the name of a file while it is written."""
    return path.with_name(path.name + ".part")


def journal_path(path: Path) -> Path:
    """Return the name of the journal of an unfinished file."""
    return path.with_name(path.name + ".part.journal")


def disk_room_bytes(path: Path) -> int:
    """Return what a file may take on its disk: what is free, and what its unfinished form has."""
    held = 0
    with contextlib.suppress(OSError):
        held = getattr(part_path(path).stat(), "st_blocks", 0) * 512
    return shutil.disk_usage(path.parent).free + held


@contextlib.contextmanager
def named_write_errors(path: Path, file_bytes: int, again: str) -> Iterator[None]:
    """Turn OSError into DiskSpaceError or OutputError; `again` is what to do with room made."""
    try:
        yield
    except Llama2qError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise DiskSpaceError(
                f"the disk is full: {path.name} needs {file_bytes / 1e9:.2f} GB in {path.parent}; "
                f"make room and {again} again"
            ) from error
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def check_disk_room(path: Path, file_bytes: int) -> None:
    """Raise DiskSpaceError unless the disk has room for a file."""
    room = disk_room_bytes(path)
    if room < file_bytes:
        raise DiskSpaceError(
            f"{path.name} needs {file_bytes / 1e9:.2f} GB; only {room / 1e9:.2f} GB are free in "
            f"{path.parent}"
        )
