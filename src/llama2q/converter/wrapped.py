"""A checkpoint that changes another one on the way."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.converter.forms import Checkpoint
from llama2q.rope_scaling import RopeScaling


class WrappedCheckpoint(Closing):
    """Passes everything on to a checkpoint, which it does not close; see `forms.Checkpoint`."""

    __slots__ = ()
    _base: Checkpoint

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self._base.folder

    @property
    def name(self) -> str:
        """The model's."""
        return self._base.name

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self._base.config

    @property
    def rope(self) -> RopeScaling:
        """The checkpoint's."""
        return self._base.rope

    @property
    def dtype(self) -> str:
        """The checkpoint's."""
        return self._base.dtype

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        return self._base.sources

    @property
    def tokenizer_bytes(self) -> bytes:
        """The checkpoint's."""
        return self._base.tokenizer_bytes

    @property
    def template(self) -> str:
        """The checkpoint's."""
        return self._base.template

    @property
    def licences(self) -> dict[str, str]:
        """The checkpoint's."""
        return self._base.licences

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Meta's tensor name -> shape."""
        return self._base.shapes

    @property
    def notes(self) -> tuple[str, ...]:
        """The checkpoint's."""
        return self._base.notes

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor, read-only."""
        return self._base.read(name)

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor takes while it is read and checked, in bytes."""
        return self._base.reading_bytes(name)

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back to the kernel; it can still be read again."""
        self._base.release(name)

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Check a tensor's stored CRC-32, where the form has one."""
        self._base.check_crc(name, except_in)

    def merged_terms(self) -> int:
        """Return how many products of adapters are added to the weights, over all tensors."""
        return self._base.merged_terms() if isinstance(self._base, WrappedCheckpoint) else 0

    def close(self) -> None:
        """Leave the checkpoint open."""
