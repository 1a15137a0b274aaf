"""A Llama 2 checkpoint in Meta's form: its shards merged, one tensor at a time."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llama2q.closing import Closing
from llama2q.config import ModelConfig
from llama2q.converter.checkpoint_folder import find_checkpoint, read_licences
from llama2q.converter.foreign import describe_foreign
from llama2q.converter.hub_cache import model_name
from llama2q.converter.mapped_tensor import NUMPY_DTYPES, WeightFile
from llama2q.converter.meta_tensors import (
    DROPPED,
    shard_shape,
    shard_slice,
    split_dim,
    tensor_shapes,
)
from llama2q.converter.params import derive_config, read_params
from llama2q.converter.pth import ShardFile
from llama2q.errors import (
    InvalidArgumentError,
    Llama2qError,
    TensorSetError,
    TokenizerError,
    UnreadableFileError,
)
from llama2q.rope_scaling import RopeScaling
from llama2q.tokenizer import Tokenizer

MAX_TOKENIZER_BYTES = 1 << 26
MAX_NAME_LENGTH = 200
_MAY_BE_TIED = frozenset({"tok_embeddings.weight", "output.weight"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MetaCheckpoint(Closing):
    """An opened and checked checkpoint (context manager); see `open`.

    Attributes
    ----------
    folder : Path
        The folder, resolved.
    config : ModelConfig
        Shape of the model.
    dtype : str
        "f32", "f16" or "bf16", the same for all tensors.
    shards : list of Path
        The files consolidated.NN.pth in order.
    params_path, tokenizer_path : Path
        params.json; tokenizer.model, beside the shards or one folder up.
    tokenizer_bytes : bytes
        The SentencePiece model.
    template : str
        "llama2-chat" or "base", by the folder's name.
    licences : dict
        File name -> text of the licence files beside the shards or one folder up.
    shapes : dict
        Tensor name -> shape of the merged tensor, in the order of execution.
    """

    folder: Path
    config: ModelConfig
    dtype: str
    shards: list[Path]
    params_path: Path
    tokenizer_path: Path
    tokenizer_bytes: bytes = field(repr=False)
    template: str
    licences: dict[str, str] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    _files: tuple[ShardFile, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a checkpoint and check all but the weights themselves.

        Parameters
        ----------
        folder : str or Path
            The folder that holds consolidated.00.pth.

        Raises
        ------
        CheckpointError
            One of its subclasses, by what is wrong: missing, truncated, damaged or foreign files,
            a tensor set, shape or dtype that is not that of one Llama 2 model.
        TokenizerError
            tokenizer.model is absent, unreadable, or has another number of pieces than the model.
        """
        with named_os_errors(folder):
            return cls._open(folder)

    @classmethod
    def _open(cls, folder: str | Path) -> Self:
        found = find_checkpoint(folder)
        params = read_params(found.params)
        tokenizer_bytes = read_tokenizer(found.tokenizer)
        with ExitStack() as stack:
            files = tuple(stack.enter_context(ShardFile(path)) for path in found.shards)
            for file in files:
                check_names(file)
                check_overlaps(file)
            _check_places(files)
            first = {name: tensor.shape for name, tensor in files[0].tensors.items()}
            config = derive_config(params, first, len(files))
            shapes = tensor_shapes(config)
            _check_tensor_sets(files, shapes)
            _check_shapes(files, shapes)
            dtype = _common_dtype(files)
            _check_replicated(files, shapes)
            _check_tokenizer(found.tokenizer, tokenizer_bytes, config.vocab_size)
            checkpoint = cls(
                folder=found.path,
                config=config,
                dtype=dtype,
                shards=list(found.shards),
                params_path=found.params,
                tokenizer_path=found.tokenizer,
                tokenizer_bytes=tokenizer_bytes,
                template=found.template,
                licences=read_licences(found.licences),
                shapes=shapes,
                _files=files,
            )
            stack.pop_all()
        return checkpoint

    @property
    def name(self) -> str:
        """The model's name."""
        return model_name(self.folder)

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        return [*self.shards, self.params_path, self.tokenizer_path]

    @property
    def rope(self) -> RopeScaling:
        """None: params.json has no scaling of positions."""
        return RopeScaling()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the reading."""
        return ()

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self._files)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor.

        Parameters
        ----------
        name : str
            Meta's name, one of `shapes`.

        Returns
        -------
        float32, float16 or uint16 (the bits of bf16), of shape `shapes[name]`
            Read-only. With one shard, and for norms, a view of the mapped file (no copy); else
            assembled from the shards, whose pages are given back at once.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        ClosedError
            The checkpoint has been closed.
        """
        shape = self._shape(name)
        if self.n_shards == 1 or split_dim(name) is None:
            return self._files[0].tensors[name].array()
        merged = np.empty(shape, NUMPY_DTYPES[self.dtype])
        for index, file in enumerate(self._files):
            part = file.tensors[name]
            merged[shard_slice(name, shape, index, self.n_shards)] = part.array()
            part.release()
        merged.flags.writeable = False
        return merged

    def reading_bytes(self, name: str) -> int:
        """Return the most memory that a tensor takes while it is read and checked, in bytes.

        Its mapped pages; beside what is assembled from several shards lie the pages whose CRC is
        being checked.
        """
        whole = math.prod(self._shape(name)) * NUMPY_DTYPES[self.dtype].itemsize
        return whole if self.n_shards == 1 or split_dim(name) is None else 2 * whole

    def release(self, name: str) -> None:
        """Give a tensor's mapped pages back to the kernel; it can still be read again."""
        self._shape(name)
        for file in self._files:
            file.tensors[name].release()

    def check_crc(self, name: str, except_in: Container[Path] = ()) -> None:
        """Check the CRC-32 of what the shards hold of a tensor (reads it).

        Parameters
        ----------
        name : str
            Meta's name.
        except_in : container of Path
            Shards that are checked in another way.

        Raises
        ------
        CorruptShardError
            A shard's data differs from what was saved; the message names the file.
        """
        self._shape(name)
        for file in self._files:
            if file.path not in except_in:
                file.check_crc(name)

    def close(self) -> None:
        """Unmap the shards; arrays handed out stay valid."""
        for file in self._files:
            file.close()

    def _shape(self, name: str) -> tuple[int, ...]:
        try:
            return self.shapes[name]
        except KeyError:
            raise InvalidArgumentError(f"the checkpoint has no tensor {name!r}") from None


@contextmanager
def named_os_errors(folder: str | Path) -> Iterator[None]:
    """Turn what the system refuses into an UnreadableFileError."""
    try:
        yield
    except Llama2qError:
        raise
    except OSError as error:
        name = Path(error.filename or folder).name
        raise UnreadableFileError(
            f"{name} cannot be read: {error.strerror or error} ({error.filename or folder})"
        ) from error


def check_names(file: WeightFile) -> None:
    """Raise TensorSetError for a tensor's name that no checkpoint has."""
    for name in file.tensors:
        if not (name.isascii() and name.isprintable() and len(name) <= MAX_NAME_LENGTH):
            raise TensorSetError(
                f"{file.path.name} holds a tensor with the name {name[:80]!a}; expected at most "
                f"{MAX_NAME_LENGTH} printable ASCII characters"
            )


def check_overlaps(file: WeightFile, may_be_tied: Set[str] = _MAY_BE_TIED) -> None:
    """Raise if tensors overlap, but for an output matrix that is the embedding table itself."""
    places = sorted((t.offset, t.offset + t.nbytes, name) for name, t in file.tensors.items())
    for (begin, end, name), (other_begin, other_end, other) in pairwise(places):
        tied = {name, other} == may_be_tied and (begin, end) == (other_begin, other_end)
        if other_begin < end and not tied:
            raise TensorSetError(
                f"{file.path.name}: {' and '.join(sorted((name, other)))} share elements of one "
                "storage; expected tensors of their own: save them after .clone()"
            )


def _check_places(files: tuple[ShardFile, ...]) -> None:
    """Compare each file's number with the one it was saved under, which its root folder keeps."""
    for file in files if len(files) > 1 else ():
        if re.fullmatch(r"consolidated\.\d\d", file.root) and file.root != file.path.stem:
            raise TensorSetError(
                f"{file.path.name} was saved as {file.root}.pth: the shards are swapped or copied; "
                "give each its own name back, or run download.sh again"
            )


def _check_tensor_sets(files: tuple[ShardFile, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    for file in files:
        missing = [name for name in shapes if name not in file.tensors]
        extra = sorted(set(file.tensors) - set(shapes) - DROPPED)
        if missing or extra:
            faults = [
                f"{label} {len(names)} ({some(names)})"
                for label, names in (("missing", missing), ("unexpected", extra))
                if names
            ]
            raise TensorSetError(
                f"{file.path.name} does not hold the {len(shapes)} tensors of a Llama 2 model: "
                + "; ".join(faults)
            )


def _check_shapes(files: tuple[ShardFile, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        try:
            expected = shard_shape(name, shape, len(files))
        except InvalidArgumentError as error:
            raise TensorSetError(str(error)) from error
        for file in files:
            found = file.tensors[name].shape
            if found != expected:
                raise TensorSetError(
                    f"{file.path.name}: {name} has the shape {found}; expected {expected}, that is "
                    f"a part of {shape} in {len(files)} shard(s)"
                )


def _common_dtype(files: tuple[ShardFile, ...]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for name, tensor in file.tensors.items():
            if name not in DROPPED:
                names[tensor.dtype].append(f"{name} in {file.path.name}")
    if len(names) > 1:
        found = "; ".join(f"{dtype}: {some(names[dtype])}" for dtype in sorted(names))
        raise TensorSetError(f"the tensors have different dtypes, expected one ({found})")
    return next(iter(names))


def _check_replicated(files: tuple[ShardFile, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare the bits of the tensors that every shard holds whole."""
    for name in (name for name in shapes if split_dim(name) is None):
        bits = files[0].tensors[name].array().view(np.uint8)
        for file in files[1:]:
            if not np.array_equal(bits, file.tensors[name].array().view(np.uint8)):
                raise TensorSetError(
                    f"{name} differs between {files[0].path.name} and {file.path.name}, though "
                    "all shards hold the same; are they of one download?"
                )


def read_tokenizer(path: Path, *, hub: bool = False) -> bytes:
    """Read a SentencePiece model; `hub`: it comes from Hugging Face's hub (for messages)."""
    with path.open("rb") as file:
        data = file.read(MAX_TOKENIZER_BYTES + 1)
    foreign = describe_foreign(path.name, data[:512], hub=hub)
    if foreign is not None:
        raise TokenizerError(foreign)
    if not 0 < len(data) <= MAX_TOKENIZER_BYTES:
        raise TokenizerError(
            f"{path} has {'no' if not data else 'over ' + str(MAX_TOKENIZER_BYTES)} bytes; "
            "expected a SentencePiece model. Download it again"
        )
    return data


def _check_tokenizer(path: Path, data: bytes, vocab_size: int) -> None:
    tokenizer = Tokenizer(data, name=str(path))
    n_pieces = tokenizer.n_words
    if n_pieces != vocab_size:
        raise TokenizerError(
            f"tokenizer.model has {n_pieces} pieces; tok_embeddings has {vocab_size} rows. "
            f"They are not of one model ({path})"
        )
    tokenizer.check_pieces()


def some(names: list[str]) -> str:
    """Write the first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
