"""The strict reader: checks everything that the header says, reads no tensor data."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.errors import (
    ClosedError,
    CorruptDataError,
    FormatError,
    HeaderError,
    InvalidArgumentError,
    ModelIdError,
    NotAnL2qFileError,
    TensorLayoutError,
    TruncatedFileError,
)
from llama2q.format.header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    ParsedHeader,
    model_id_of,
    parse_header,
)
from llama2q.format.layout import (
    TOKENIZER,
    MatrixSpec,
    is_pad,
    matrix_spec,
    place,
    tensor_specs,
)
from llama2q.format.metadata import Metadata, check_identity
from llama2q.format.recipe import Recipe
from llama2q.quant.quant_type import NUMPY_DTYPES

_MAGICS = (
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"PK\x03\x04", "a zip archive, perhaps a .pth shard: convert its folder with llama2q-convert"),
    (b"<", "a web page or XML: the download failed"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor: safetensors dtype, shape, and its place in bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class L2qFile(Closing):
    """An open `.l2q` file: checked header, mapped data. A context manager.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    path : Path
    metadata : Metadata
    tensors : dict of str to TensorInfo
        In the order of the file; pads are left out.
    pads : tuple of TensorInfo
    file_bytes : int

    Raises
    ------
    FileNotFoundError
        There is no such file.
    NotAnL2qFileError, UnsupportedVersionError, TruncatedFileError, HeaderError, ModelIdError,
    TensorLayoutError
        See `llama2q.errors`; the message starts with the file's name.

    Notes
    -----
    Opening reads the header only; `verify` reads the data. The map is read-only and so is every
    array. `close` never fails: arrays that are still alive keep the map, which is freed with the
    last of them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise NotAnL2qFileError(
                f"{self.path.name} is a folder; convert a checkpoint with llama2q-convert first"
            )
        with self.path.open("rb") as file:
            try:
                header, self.metadata = _read_header(file)
            except FormatError as error:
                raise type(error)(f"{self.path.name}: {error}") from error
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.file_bytes = header.file_bytes
        infos = [
            TensorInfo(
                tensor.spec.name,
                tensor.spec.dtype,
                tensor.spec.shape,
                header.data_start + tensor.begin,
                tensor.end - tensor.begin,
            )
            for tensor in header.tensors
        ]
        self.tensors = {info.name: info for info in infos if not is_pad(info.name)}
        self.pads = tuple(info for info in infos if is_pad(info.name))

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return self.metadata.config

    @property
    def recipe(self) -> Recipe:
        """The quant type of each matrix."""
        return self.metadata.recipe

    @property
    def template(self) -> str:
        """Name of the chat template, one of `format.metadata.TEMPLATES`; "base" has none."""
        return self.metadata.template

    @property
    def model_id(self) -> str:
        """64 hex digits that name this file's content."""
        return self.metadata.model_id

    def matrix(self, name: str) -> MatrixSpec:
        """Return shape, type and sources of a matrix of the recipe."""
        if name not in self.recipe.tensors:
            raise InvalidArgumentError(f"{self.path.name} has no matrix {name!r}")
        return matrix_spec(self.config, self.recipe, name)

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a tensor in the map; bfloat16 comes as uint16.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        ClosedError
            The file was closed.
        """
        if name not in self.tensors:
            raise InvalidArgumentError(f"{self.path.name} has no tensor {name!r}")
        return self.view(self.tensors[name])

    def view(self, info: TensorInfo) -> NDArray[Any]:
        """Return a read-only view of a tensor or pad by its place."""
        dtype = NUMPY_DTYPES[info.dtype]
        count = info.nbytes // dtype.itemsize
        return np.frombuffer(self.map, dtype, count, info.offset).reshape(info.shape)

    def release(self, name: str) -> None:
        """Tell the system that a tensor is done with for now, so that its pages leave the process.

        Reading it again brings them back. Does nothing where there is no such call.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            info = self.tensors[name]
            begin = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.map.madvise(advice, begin, info.offset + info.nbytes - begin)

    @property
    def map(self) -> mmap.mmap:
        """The read-only map of the whole file."""
        if self._map is None:
            raise ClosedError(f"{self.path.name} is closed")
        return self._map

    def check_size(self) -> None:
        """Refuse to go on with a file that has changed its size; takes a microsecond.

        Reading the map behind the file's end kills the process (SIGBUS).

        Raises
        ------
        TruncatedFileError
            The file is not as long as it was when it was opened.
        """
        size = self.map.size()
        if size != self.file_bytes:
            raise TruncatedFileError(
                f"{self.path.name} has {size} bytes now, {self.file_bytes} when it was opened: "
                "something wrote to it while it was in use; copy or convert it again"
            )

    def verify(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Read all data and check hashes, code ranges, scales and padding.

        Parameters
        ----------
        progress : callable, optional
            Called as progress(done_bytes, total_bytes, tensor_name).

        Raises
        ------
        CorruptDataError
            The first fault found, with tensor and place.
        """
        for fault in self.faults(progress):
            raise fault

    def faults(
        self, progress: Callable[[int, int, str], None] | None = None
    ) -> Iterator[CorruptDataError]:
        """Read all data as `verify` does; yield every fault: one per tensor and kind of check."""
        from llama2q.format.verify import find_faults

        return find_faults(self, progress)

    def close(self) -> None:
        """Drop the map; arrays that are still alive keep it until they go."""
        self._map = None


def _read_header(file: BinaryIO) -> tuple[ParsedHeader, Metadata]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(LENGTH_BYTES + 24)
    _check_magic(start, size)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"the header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    file.seek(LENGTH_BYTES)
    raw = file.read(length)
    if len(raw) < length:
        raise TruncatedFileError(
            f"the file ends inside its header ({size} of {LENGTH_BYTES + length} bytes): "
            "copy or convert it again"
        )
    header = parse_header(raw)
    check_identity(header.metadata)
    found = model_id_of(header.tensors, header.metadata)
    if found != header.metadata["model_id"]:
        raise ModelIdError(
            f"the header hashes to {found[:16]}... but names model id "
            f"{header.metadata['model_id'][:16]}...: it was changed or damaged; convert again"
        )
    metadata = Metadata.from_strings(header.metadata)
    _check_tensors(header, metadata)
    if size != header.file_bytes:
        fault = "truncated" if size < header.file_bytes else "longer than it should be"
        raise TruncatedFileError(
            f"the file is {fault}: {size} bytes, expected {header.file_bytes}; "
            "copy or convert it again"
        )
    return header, metadata


def _check_magic(start: bytes, size: int) -> None:
    for magic, meaning in _MAGICS:
        if start.startswith(magic):
            raise NotAnL2qFileError(f"this is {meaning}")
    if size <= LENGTH_BYTES:
        raise NotAnL2qFileError(f"the file has {size} bytes, too few for a .l2q header")
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise NotAnL2qFileError("the file does not start like a .l2q (safetensors) file")


def _check_tensors(header: ParsedHeader, metadata: Metadata) -> None:
    """Compare the tensors with those that config and recipe demand, place by place."""
    tokenizers = [t.spec for t in header.tensors if t.spec.name == TOKENIZER]
    if not tokenizers or len(tokenizers[0].shape) != 1 or tokenizers[0].dtype != "U8":
        raise TensorLayoutError(f"{TOKENIZER} is missing or not a one-dimensional U8 tensor")
    expected = place(tensor_specs(metadata.config, metadata.recipe, tokenizers[0].shape[0]))
    for found, wanted in zip(header.tensors, expected, strict=False):
        if found != wanted:
            raise TensorLayoutError(
                f"expected {_describe(wanted.spec)} at {wanted.begin}, "
                f"found {_describe(found.spec)} at {found.begin}"
            )
    if len(header.tensors) != len(expected):
        raise TensorLayoutError(
            f"the file has {len(header.tensors)} tensors; config and recipe demand {len(expected)}"
        )
    names = {tensor.spec.name for tensor in expected if not is_pad(tensor.spec.name)}
    if set(metadata.sha256) != names:
        differing = sorted(names ^ set(metadata.sha256))[:3]
        raise HeaderError(f"sha256 does not name exactly the tensors; see {differing}")


def _describe(spec: Any) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"
