"""A tensor of a mapped file, whatever the file's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama2q.converter.mapped_file import MappedFile

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}
"""How a dtype appears as a NumPy array; bf16 as its bits."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MappedTensor:
    """A tensor in a mapped file.

    Attributes
    ----------
    name : str
    dtype : str
        "f32", "f16" or "bf16"; another one cannot be viewed.
    shape : tuple of int
        In elements.
    offset, nbytes : int
        Its place in the file, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: MappedFile = field(repr=False)

    def array(self) -> NDArray[Any]:
        """View the tensor in the mapped file.

        Returns
        -------
        float32, float16 or uint16 (the bits of bf16), of `shape`
            Read-only; no data is read before it is touched.
        """
        dtype = NUMPY_DTYPES[self.dtype]
        count = self.nbytes // dtype.itemsize
        return self.file.array(self.offset, count, dtype).reshape(self.shape)

    def release(self) -> None:
        """Give the tensor's pages back to the kernel; it can still be read again."""
        self.file.release(self.offset, self.nbytes)


class WeightFile(Protocol):
    """One open file of a checkpoint."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, MappedTensor]:
        """The tensors by name."""

    def check_crc(self, name: str) -> None:
        """Check the stored CRC-32 of a tensor, where the form has one (reads it)."""

    def close(self) -> None:
        """Unmap the file."""
