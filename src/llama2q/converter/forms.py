"""The forms that a checkpoint may have, told apart by its first bytes or what its folder holds."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.checkpoint import MetaCheckpoint, named_os_errors
from llama2q.converter.checkpoint_folder import holds_shards
from llama2q.converter.gguf_checkpoint import GgufCheckpoint
from llama2q.converter.gguf_folder import gguf_in, is_gguf
from llama2q.converter.hf_checkpoint import HfCheckpoint
from llama2q.converter.hf_folder import is_hugging_face
from llama2q.converter.hub_cache import snapshot_in
from llama2q.rope_scaling import RopeScaling


class Checkpoint(Protocol):
    """An opened checkpoint (context manager), under Meta's names and in Meta's row order.

    Attributes and methods are those of `HfCheckpoint`.
    """

    @property
    def folder(self) -> Path:
        """The folder, resolved."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""

    @property
    def rope(self) -> RopeScaling:
        """Scaling of positions that it was trained with."""

    @property
    def dtype(self) -> str:
        """Of the matrices: "f32", "f16" or "bf16"; of a GGUF file also "dense" or "quantized"."""

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""

    @property
    def tokenizer_bytes(self) -> bytes:
        """The SentencePiece model."""

    @property
    def template(self) -> str:
        """The chat template's name."""

    @property
    def licences(self) -> dict[str, str]:
        """File name -> text."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, in the order of execution."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the reading."""

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor, read-only."""

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor takes while it is read and checked, in bytes."""

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the kernel."""

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Check a tensor's stored CRC-32, where the form has one."""

    def close(self) -> None:
        """Let go of the files; arrays handed out stay valid."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(self, *exc: object) -> None:
        """Close."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any form; Meta's comes first where a folder holds two, GGUF last.

    Parameters
    ----------
    path : Path
        The folder with the weights, or a repository's folder in Hugging Face's cache; or a GGUF
        file.

    Raises
    ------
    CheckpointError, TokenizerError
        See `MetaCheckpoint.open`, `HfCheckpoint.open` and `GgufCheckpoint.open`.
    """
    with named_os_errors(path):
        if is_gguf(path):
            return GgufCheckpoint.open(path)
        folder = snapshot_in(path)
        if not folder.is_dir() or holds_shards(folder):
            return MetaCheckpoint.open(folder)
        inside = gguf_in(folder)
        if inside is not None:
            return GgufCheckpoint.open(inside)
        other = is_hugging_face(folder)
    return HfCheckpoint.open(folder) if other else MetaCheckpoint.open(folder)
