"""One `consolidated.NN.pth`, read without torch: named tensors as views of the mapped file."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llama2q.closing import Closing
from llama2q.converter.archive import LOCAL_SIGNATURE, Entry, local_data_offset, read_directory
from llama2q.converter.foreign import HUB_AGAIN, META_AGAIN, describe_foreign
from llama2q.converter.mapped_file import MappedFile
from llama2q.converter.mapped_tensor import MappedTensor
from llama2q.converter.torch_objects import DTYPE_BYTES, StorageRef, TensorRef
from llama2q.converter.unpickle import MAX_PICKLE_BYTES, unpickle
from llama2q.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptShardError,
    ShardFormatError,
    TruncatedShardError,
)

_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number, pickled."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredTensor(MappedTensor):
    """A tensor of a shard, and the archive's entry that holds it."""

    entry: Entry


class ShardFile(Closing):
    """A shard, opened and checked (context manager); tensor data is not read.

    Attributes
    ----------
    path : Path
        The file.
    entries : mapping
        The archive's entries by full name.
    root : str
        The folder that they lie in: the stem of the name under which torch.save wrote the file.
    tensors : mapping
        The tensors by name, in the order in which they were saved.

    Parameters
    ----------
    path : str or Path
        A file in the zip form of `torch.save`.
    hub : bool
        Whether it comes from Hugging Face's hub, not from Meta: messages say how to get it again.

    Raises
    ------
    CheckpointNotFoundError
        There is no such file.
    TruncatedShardError
        The file is empty or ends too early.
    ShardFormatError
        It is something else, or breaks a rule of the form.
    UnsafePickleError
        Its pickle asks for more than tensors.
    CorruptShardError
        Its pickle fails its CRC.
    """

    def __init__(self, path: str | Path, *, hub: bool = False) -> None:
        """Open and check."""
        self.path = Path(path)
        self._again = HUB_AGAIN if hub else META_AGAIN
        if not self.path.is_file():
            raise CheckpointNotFoundError(f"{self.path} is not a file")
        if self.path.stat().st_size == 0:
            raise TruncatedShardError(f"{self.path.name} is empty; {self._again}")
        self._file = MappedFile(self.path)
        try:
            _refuse_other_formats(
                self.path.name, self._file.read(0, min(512, self._file.size)), hub=hub
            )
            self.entries = MappingProxyType(self._read_entries())
            self.tensors = MappingProxyType(self._read_tensors())
        except BaseException:
            self._file.close()
            raise

    def crc_ok(self, entry: Entry) -> bool:
        """Read an entry's data and compare it with the stored CRC-32."""
        return self._file.crc32(entry.offset, entry.size) == entry.crc32

    def check_crc(self, name: str) -> None:
        """Read the storage behind a tensor and check its CRC-32.

        Raises
        ------
        CorruptShardError
            The data differs from what was saved.
        """
        entry = self.tensors[name].entry
        if not self.crc_ok(entry):
            raise CorruptShardError(
                f"{self.path.name} is damaged: {name} (entry {entry.name}) fails its CRC; "
                "download the file again"
            )

    def close(self) -> None:
        """Unmap the file; arrays handed out stay valid."""
        self._file.close()

    def _read_entries(self) -> dict[str, Entry]:
        try:
            return read_directory(self._file)
        except TruncatedShardError as error:
            expected = _stored_bytes(self._file)
            if expected is None or expected <= self._file.size:
                raise
            raise TruncatedShardError(
                f"{self.path.name} is truncated ({_sizes(self._file.size, expected)}); "
                f"{self._again}"
            ) from error

    def _read_tensors(self) -> dict[str, StoredTensor]:
        where = self.path.name
        roots = sorted({name.partition("/")[0] for name in self.entries})
        if len(roots) != 1:
            raise ShardFormatError(
                f"{where} is a zip archive with the roots {roots[:5]}; torch.save writes one"
            )
        root = self.root = roots[0]
        pickle = self.entries.get(f"{root}/data.pkl")
        if pickle is None:
            raise ShardFormatError(
                f"{where} is a zip archive without {root}/data.pkl, so torch.save did not write it"
            )
        if f"{root}/constants.pkl" in self.entries:
            raise ShardFormatError(f"{where} is a TorchScript program; expected a dict of tensors")
        self._check_byteorder(self.entries.get(f"{root}/byteorder"))
        if pickle.size > MAX_PICKLE_BYTES:
            raise ShardFormatError(
                f"{where}: data.pkl has {pickle.size} bytes; expected at most {MAX_PICKLE_BYTES}"
            )
        if not self.crc_ok(pickle):
            raise CorruptShardError(
                f"{where} is damaged: {pickle.name} fails its CRC; download the file again (or, "
                "if torch.serialization.set_crc32_options(False) wrote it, save it without that)"
            )
        unpickled = unpickle(self._file.read(pickle.offset, pickle.size), where)
        places = {
            key: self._find_storage(root, storage) for key, storage in unpickled.storages.items()
        }
        return {
            name: self._view(name, tensor, places[tensor.storage.key])
            for name, tensor in unpickled.tensors.items()
        }

    def _check_byteorder(self, entry: Entry | None) -> None:
        found = self._file.read(entry.offset, min(entry.size, 16)) if entry else b"little"
        if found != sys.byteorder.encode() or sys.byteorder != "little":
            raise ShardFormatError(
                f"{self.path.name} was saved with byte order {found!r}; this reader takes little "
                f"endian files on little endian machines (this one is {sys.byteorder}). "
                "Save it again on such a machine"
            )

    def _find_storage(self, root: str, storage: StorageRef) -> Entry:
        entry = self.entries.get(f"{root}/data/{storage.key}")
        if entry is None:
            raise ShardFormatError(f"{self.path.name} lacks the storage {root}/data/{storage.key}")
        expected = storage.numel * DTYPE_BYTES[storage.dtype]
        if entry.size != expected:
            raise ShardFormatError(
                f"{self.path.name}: {entry.name} has {entry.size} bytes; its pickle says "
                f"{storage.numel} elements of {storage.dtype}, that is {expected}"
            )
        return entry

    def _view(self, name: str, tensor: TensorRef, entry: Entry) -> StoredTensor:
        count = math.prod(tensor.shape)
        if tensor.offset + count > tensor.storage.numel:
            raise ShardFormatError(
                f"{self.path.name}: {name} of shape {tensor.shape} at element {tensor.offset} "
                f"runs past its storage of {tensor.storage.numel} elements"
            )
        if count == 0:
            raise ShardFormatError(f"{self.path.name}: {name} is empty (shape {tensor.shape})")
        dense = 1
        for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
            if size != 1 and stride != dense:
                raise ShardFormatError(
                    f"{self.path.name}: {name} of shape {tensor.shape} has strides "
                    f"{tensor.strides}; expected a contiguous tensor: save it after .contiguous()"
                )
            dense *= size
        itemsize = DTYPE_BYTES[tensor.storage.dtype]
        return StoredTensor(
            name=name,
            dtype=tensor.storage.dtype,
            shape=tensor.shape,
            offset=entry.offset + tensor.offset * itemsize,
            nbytes=count * itemsize,
            file=self._file,
            entry=entry,
        )


def _refuse_other_formats(name: str, head: bytes, *, hub: bool) -> None:
    """Raise for content that is no zip archive, given the first bytes (up to 512) of a file."""
    foreign = describe_foreign(name, head, hub=hub)
    if foreign is not None:
        raise ShardFormatError(foreign)
    if head.startswith(LOCAL_SIGNATURE):
        return
    if head.startswith(_LEGACY_START) or head[257:262] == b"ustar":
        raise ShardFormatError(
            f"{name} is in the legacy form of torch.save (before 1.6, no zip archive). Save it "
            f"again with torch: torch.save(torch.load({name!r}, weights_only=True), NEW_FILE)"
        )
    raise ShardFormatError(
        f"{name} starts with {head[:8]!r}; expected a zip archive as torch.save writes it. "
        "Download it again"
    )


def _stored_bytes(file: MappedFile) -> int | None:
    """Return the bytes of all storages by the pickle at the start of a cut-off archive."""
    try:
        name, start = local_data_offset(file, 0)
        if not name.endswith(b"/data.pkl"):
            return None
        data = file.read(start, min(MAX_PICKLE_BYTES, file.size - start))
        storages = unpickle(data, file.path.name, exact=False).storages
    except CheckpointError:
        return None
    return sum(storage.numel * DTYPE_BYTES[storage.dtype] for storage in storages.values())


def _sizes(found: int, expected: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if expected >= scale:
            return f"{found / scale:.1f} of {expected / scale:.1f} {unit}"
    return f"{found} of {expected} bytes"
