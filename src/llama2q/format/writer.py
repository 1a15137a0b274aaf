"""The atomic writer: `NAME.part` and its journal, then a rename."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from llama2q.errors import (
    FileInUseError,
    InvalidArgumentError,
    OutputExistsError,
)
from llama2q.files import (
    fsync_folder,
    is_open_under,
    leave_page_cache,
    lock,
    replace,
    require_replaceable,
    start_writing,
)
from llama2q.format.header import build_header, model_id_of
from llama2q.format.journal import Journal, write_all
from llama2q.format.layout import (
    INV_FREQ,
    TOKENIZER,
    MatrixSpec,
    TensorSpec,
    model_parts,
)
from llama2q.format.metadata import Metadata, require_hash
from llama2q.format.outline import (
    Outline,
    check_disk_room,
    journal_path,
    named_write_errors,
    part_path,
)
from llama2q.format.rope import inv_freq
from llama2q.quant.quant_type import NUMPY_DTYPES

_log = logging.getLogger(__name__)

Chunks = Iterable[NDArray[Any]]
"""The bytes of one tensor, in pieces, so that no copy of the whole is needed."""


class Writer:
    """Writes one `.l2q` file, tensor by tensor in the order of the file. A context manager.

    Until `finish` the data lie in `NAME.part`. Leaving the context by an error removes it; by an
    interruption (KeyboardInterrupt, SystemExit, a kill), or because a program uses the file that
    is to be replaced, it stays with `NAME.part.journal`, and the next writer with equal metadata,
    tokenizer and fingerprint goes on behind the last finished tensor.

    Parameters
    ----------
    path : str or Path
        Final name.
    metadata : Metadata
        Without hashes: names and sizes of the sources are enough.
    tokenizer : bytes
        The SentencePiece model.
    fingerprint : str, optional
        Anything that changes when the sources do. Without it nothing is ever resumed.
    overwrite : bool
        Whether an existing file may be replaced.
    resume : bool
        Whether to go on with an unfinished `NAME.part`; else it is begun anew.

    Attributes
    ----------
    finished : dict of str to str
        Hashes of the tensors that are complete, by name.
    file_bytes, data_bytes : int
        Size that the file will have, and of its tensors without pads.

    Raises
    ------
    OutputExistsError
        The file exists, or another process is writing it.
    DiskSpaceError
        The disk has no room for it, at the start or later.
    FileInUseError
        On Windows: a program has the file open that is to be replaced; at the start or at the end.
    OutputError
        The system refuses to write.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Metadata,
        tokenizer: bytes,
        *,
        fingerprint: str = "",
        overwrite: bool = False,
        resume: bool = True,
    ) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.tokenizer = tokenizer
        self._overwrite = overwrite
        self._part_path = part_path(self.path)
        self._remove_orphan(journal_path(self.path))
        refuse_existing(self.path, overwrite=overwrite)
        require_replaceable(self.path)
        outline = Outline.of(metadata, len(tokenizer))
        self._placed, self._tensors = outline.placed, outline.tensors
        self._data_start = outline.data_start
        self.file_bytes, self.data_bytes = outline.file_bytes, outline.data_bytes
        self._journal = Journal(journal_path(self.path), outline.key(fingerprint, tokenizer))
        check_disk_room(self.path, self.file_bytes)
        self._renamed = False
        with self._named_errors():
            self._part = self._open_part()
        try:
            with self._named_errors():
                self.finished = self._resume(outline.header, enabled=resume and bool(fingerprint))
        except BaseException as error:
            self._leave(type(error))
            raise

    def write(self, name: str, chunks: Chunks) -> None:
        """Write the next tensor.

        Parameters
        ----------
        name : str
            Must be the first that is not finished.
        chunks : iterable of arrays
            Of the tensor's dtype (uint16 for BF16); their elements follow each other.
        """
        if len(self.finished) == len(self._tensors):
            raise InvalidArgumentError(f"all tensors are written; {name} is one too many")
        tensor = self._tensors[len(self.finished)]
        if name != tensor.spec.name:
            raise InvalidArgumentError(f"the next tensor is {tensor.spec.name}, not {name}")
        dtype = NUMPY_DTYPES[tensor.spec.dtype]
        digest = hashlib.sha256()
        with self._named_errors():
            self._part.seek(self._data_start + tensor.begin)
        written = 0
        for chunk in chunks:
            if chunk.dtype != dtype:
                raise InvalidArgumentError(f"{name} is {dtype}, not {chunk.dtype}")
            view = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
            written += len(view)
            if written > tensor.spec.nbytes:
                break
            digest.update(view)
            with self._named_errors():
                write_all(self._part, view)
        if written != tensor.spec.nbytes:
            raise InvalidArgumentError(
                f"{name} {list(tensor.spec.shape)} has {tensor.spec.nbytes} bytes, "
                f"not {written} or more"
            )
        with self._named_errors():
            write_all(self._part, memoryview(bytes(-written % 64)))
            start_writing(self._part, self._data_start + tensor.begin, tensor.spec.nbytes)
            self._journal.add(tensor, digest.hexdigest())
        self.finished[name] = digest.hexdigest()

    def read_back(self, name: str) -> NDArray[Any]:
        """Return a finished tensor, of its dtype and shape."""
        if name not in self.finished:
            raise InvalidArgumentError(f"tensor {name} is not written yet")
        tensor = next(tensor for tensor in self._tensors if tensor.spec.name == name)
        with self._named_errors():
            self._part.seek(self._data_start + tensor.begin)
            data = self._part.read(tensor.spec.nbytes)
        return np.frombuffer(data, NUMPY_DTYPES[tensor.spec.dtype]).reshape(tensor.spec.shape)

    def finish(self, source_sha256: Mapping[str, str] | None = None) -> str:
        """Write the final header, rename, and return the model id.

        Parameters
        ----------
        source_sha256 : mapping of str to str, optional
            64 hex digits for each source file, by name.
        """
        if len(self.finished) != len(self._tensors):
            missing = self._tensors[len(self.finished)].spec.name
            raise InvalidArgumentError(f"tensor {missing} is not written yet")
        hashes = source_sha256 or {}
        if set(hashes) != {entry.name for entry in self.metadata.source}:
            raise InvalidArgumentError("source_sha256 does not name exactly the source files")
        for name, digits in hashes.items():
            require_hash(digits, f"sha256 of source {name}")
        refuse_existing(self.path, overwrite=self._overwrite)
        strings = self._final(hashes).to_strings()
        model_id = model_id_of(self._placed, strings)
        header = build_header(self._placed, {**strings, "model_id": model_id})
        with self._named_errors():
            self._part.seek(0)
            write_all(self._part, memoryview(header))
            os.fsync(self._part.fileno())
            if sys.platform == "win32":
                self._part.close()  # an open file cannot be renamed; elsewhere it stays locked
            replace(self._part_path, self.path)
            self._renamed = True
            leave_page_cache(self._part)
            self._part.close()
            self._journal.remove()
            fsync_folder(self.path.parent)
        return model_id

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; remove what is unfinished unless this is an interruption."""
        if self._renamed:
            if kind is not None:  # between the rename and the end of finish
                self._part.close()
                with contextlib.suppress(OSError):
                    self._journal.remove()
        elif kind is None:
            self._discard()
        else:
            self._leave(kind)

    def _leave(self, kind: type[BaseException]) -> None:
        """Keep what is there for the next run, or remove it."""
        if issubclass(kind, Exception) and not issubclass(kind, FileInUseError):
            self._discard()
        else:
            self._journal.close()
            self._part.close()

    def _discard(self) -> None:
        """Remove what is unfinished; an error that led here must not be hidden by another."""
        if sys.platform == "win32":
            self._part.close()
        with contextlib.suppress(OSError):
            self._part_path.unlink(missing_ok=True)
        self._part.close()
        with contextlib.suppress(OSError):
            self._journal.remove()

    def _named_errors(self) -> contextlib.AbstractContextManager[None]:
        return named_write_errors(self.path, self.file_bytes, "convert")

    def _final(self, hashes: Mapping[str, str]) -> Metadata:
        source = tuple(
            type(entry)(entry.name, entry.bytes, hashes[entry.name])
            for entry in self.metadata.source
        )
        return self.metadata.with_hashes(source, self.finished)

    def _remove_orphan(self, journal: Path) -> None:
        """Remove a journal without its file: a run was killed right after its rename."""
        if journal.exists() and not self._part_path.exists():
            with contextlib.suppress(OSError):
                journal.unlink()

    def _open_part(self) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._part_path, flags, 0o666)  # less the umask
        part = open(descriptor, "r+b", buffering=0)  # noqa: PTH123
        if not lock(part) or not is_open_under(part, self._part_path):
            part.close()
            raise OutputExistsError(f"{self._part_path} is being written by another process")
        return part

    def _resume(self, header: bytes, *, enabled: bool) -> dict[str, str]:
        finished: dict[str, str] = {}
        if enabled:
            finished = self._journal.resume(self._part, self._data_start, self._tensors)
        if finished:
            _log.info("%s: going on after %d finished tensors", self._part_path, len(finished))
        end = self._tensors[len(finished) - 1].end if finished else 0
        self._part.truncate(self._data_start + end + -end % 64)
        self._part.seek(0)
        write_all(self._part, memoryview(header))
        self._journal.start(self._tensors, finished)
        return finished


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise unless a file may be written under this name."""
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; pass overwrite=True (--force) to replace it")


def write_model(
    writer: Writer,
    encode: Callable[[MatrixSpec], list[Chunks]],
    norm: Callable[[TensorSpec], NDArray[np.float32]],
    before: Callable[[MatrixSpec | TensorSpec], None] | None = None,
) -> None:
    """Write all tensors that the writer has not finished.

    Parameters
    ----------
    writer : Writer
    encode : callable
        Returns the chunks of each stored tensor of a matrix (codes and scales, or values).
    norm : callable
        Returns the float32 weights of a norm.
    before : callable, optional
        Called with each part before it is made.
    """
    metadata = writer.metadata
    for part in model_parts(metadata.config, metadata.recipe, len(writer.tokenizer)):
        if before is not None:
            before(part)
        specs = part.tensors() if isinstance(part, MatrixSpec) else (part,)
        if all(spec.name in writer.finished for spec in specs):
            continue
        if isinstance(part, MatrixSpec):
            _write_part(writer, specs, encode(part))
        elif part.name == INV_FREQ:
            config = metadata.config
            frequencies = inv_freq(config.rope_theta, config.head_dim, metadata.rope)
            _write_part(writer, specs, [[frequencies]])
        elif part.name == TOKENIZER:
            _write_part(writer, specs, [[np.frombuffer(writer.tokenizer, dtype=np.uint8)]])
        else:
            _write_part(writer, specs, [[norm(part)]])


def _write_part(writer: Writer, specs: tuple[TensorSpec, ...], contents: list[Chunks]) -> None:
    """Write the tensors of a part that are not finished; its arrays go when this returns."""
    for spec, chunks in zip(specs, contents, strict=True):
        if spec.name not in writer.finished:
            writer.write(spec.name, chunks)
