"""A strict reader of the zip archives that `torch.save` writes.

Only what torch writes is accepted: stored entries below one root folder, no encryption, no
duplicate names, no overlapping entries, a central directory that ends where the end record
starts. The central directory (with Zip64) is the only authority; nothing is searched for.
Source of the layout: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from llama2q.converter.mapped_file import MappedFile
from llama2q.errors import ShardFormatError, TruncatedShardError

LOCAL_SIGNATURE = b"PK\x03\x04"
MAX_ENTRIES = 1 << 18
MAX_DIRECTORY_BYTES = 1 << 26
MAX_NAME_LENGTH = 512

_END = struct.Struct("<4s4H2LH")  # 22 bytes
_END64_LOCATOR = struct.Struct("<4sLQL")  # 20 bytes
_END64 = struct.Struct("<4sQ2H2L4Q")  # 56 bytes
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 46 bytes
_LOCAL = struct.Struct("<4s5H3L2H")  # 30 bytes
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_DATA_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file of the archive; sizes and offsets in bytes of the outer file."""

    name: str
    header_offset: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    size: int
    n_entries: int


@dataclass(frozen=True, slots=True)
class _Central:
    name: bytes
    flags: int
    crc32: int
    size: int
    header_offset: int


def read_directory(file: MappedFile) -> dict[str, Entry]:
    """Read and check the archive's directory.

    Parameters
    ----------
    file : MappedFile
        The whole archive.

    Returns
    -------
    dict
        Full entry name -> entry, in the directory's order.

    Raises
    ------
    TruncatedShardError
        The archive starts as a zip file and has no end record.
    ShardFormatError
        It breaks any other rule; the message says which.
    """
    directory = _find_directory(file)
    entries: dict[str, Entry] = {}
    for central in _read_centrals(file, directory):
        entry = _locate(file, central, directory.offset)
        if entry.name in entries:
            raise _fault(file, f"two entries are named {entry.name!r}")
        entries[entry.name] = entry
    _check_overlaps(file, entries)
    return entries


def local_data_offset(file: MappedFile, header_offset: int) -> tuple[bytes, int]:
    """Return the name in a local header and the offset of the data that follows it."""
    if header_offset < 0 or header_offset + _LOCAL.size > file.size:
        raise _fault(file, f"a local header at byte {header_offset} lies outside the file")
    fields = _LOCAL.unpack(file.read(header_offset, _LOCAL.size))
    signature, name_length, extra_length = fields[0], fields[9], fields[10]
    if signature != LOCAL_SIGNATURE:
        raise _fault(file, f"no local header at byte {header_offset}")
    start = header_offset + _LOCAL.size
    end = start + name_length + extra_length
    if end > file.size:
        raise _fault(file, f"the local header at byte {header_offset} runs past the end")
    return file.read(start, name_length), end


def _fault(file: MappedFile, what: str) -> ShardFormatError:
    what = what if len(what) <= 600 else what[:300] + " ... " + what[-300:]
    return ShardFormatError(
        f"{file.path.name} is not an archive as torch.save writes it: {what}; download it again"
    )


def _find_directory(file: MappedFile) -> _Directory:
    end_offset = file.size - _END.size
    end = _END.unpack(file.read(end_offset, _END.size)) if end_offset >= 0 else None
    if end is None or end[0] != b"PK\x05\x06" or end[7] != 0:
        tail = file.read(max(0, file.size - _MAX16 - 22), min(file.size, _MAX16 + 22))
        if b"PK\x05\x06" in tail[: 4 - _END.size]:  # a whole record, or more
            raise _fault(file, "bytes follow the archive's end record")
        raise TruncatedShardError(
            f"{file.path.name} is truncated (its {file.size} bytes lack the archive's end); "
            "run download.sh again, it resumes"
        )
    _, disk, directory_disk, here, total, size, offset, _ = end
    boundary = end_offset
    locator_offset = end_offset - _END64_LOCATOR.size
    if locator_offset >= 0:
        locator = _END64_LOCATOR.unpack(file.read(locator_offset, _END64_LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            boundary = locator_offset - _END64.size
            if locator[1:] != (0, boundary, 1) or boundary < 0:
                raise _fault(file, "its Zip64 locator does not point to the record before it")
            record = _END64.unpack(file.read(boundary, _END64.size))
            if record[:2] != (b"PK\x06\x06", _END64.size - 12):
                raise _fault(file, "its Zip64 end record is malformed")
            wide = record[4:]
            limits = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
            narrow = (disk, directory_disk, here, total, size, offset)
            if any(n not in (w, m) for n, w, m in zip(narrow, wide, limits, strict=True)):
                raise _fault(file, "its two end records disagree")
            disk, directory_disk, here, total, size, offset = wide
    if (disk, directory_disk) != (0, 0) or here != total:
        raise _fault(file, "it is part of a multi-volume archive")
    if total > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise _fault(file, f"its directory claims {total} entries in {size} bytes")
    if offset + size != boundary:
        raise _fault(
            file,
            f"its directory of {size} bytes at byte {offset} should end at byte {boundary}",
        )
    return _Directory(offset, size, total)


def _read_centrals(file: MappedFile, directory: _Directory) -> list[_Central]:
    data = file.read(directory.offset, directory.size)
    centrals: list[_Central] = []
    at = 0
    for number in range(directory.n_entries):
        if at + _CENTRAL.size > len(data):
            raise _fault(file, f"its directory ends inside entry {number}")
        fields = _CENTRAL.unpack_from(data, at)
        (signature, _, _, flags, method, _, _, crc32, packed, size) = fields[:10]
        (name_length, extra_length, comment_length, disk, _, _, header_offset) = fields[10:]
        end = at + _CENTRAL.size + name_length + extra_length + comment_length
        if signature != b"PK\x01\x02" or end > len(data):
            raise _fault(file, f"entry {number} of its directory is malformed")
        name = data[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
        extra = data[at + _CENTRAL.size + name_length : end - comment_length]
        if flags & ~(_DATA_DESCRIPTOR | _UTF8):
            raise _fault(file, f"entry {name!r} is encrypted or has unknown flags ({flags:#06x})")
        if method != 0:
            raise _fault(file, f"entry {name!r} is compressed (method {method}), expected stored")
        if disk != 0:
            raise _fault(file, f"entry {name!r} lies on volume {disk}")
        size, packed, header_offset = _widen(file, name, extra, size, packed, header_offset)
        if size != packed:
            raise _fault(file, f"entry {name!r} is stored as {packed} bytes, but has {size}")
        centrals.append(_Central(name, flags, crc32, size, header_offset))
        at = end
    if at != len(data):
        raise _fault(file, f"{len(data) - at} bytes follow the last entry of its directory")
    return centrals


def _widen(
    file: MappedFile, name: bytes, extra: bytes, size: int, packed: int, header_offset: int
) -> tuple[int, int, int]:
    """Replace the saturated fields of an entry by those of its Zip64 extra field."""
    wide: bytes | None = None
    at = 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise _fault(file, f"the extra field of entry {name!r} is malformed")
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise _fault(file, f"the extra field of entry {name!r} is malformed")
        if kind == 1:
            if wide is not None:
                raise _fault(file, f"entry {name!r} has two Zip64 fields")
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    values = [size, packed, header_offset]
    saturated = [i for i, value in enumerate(values) if value == _MAX32]
    if saturated:
        if wide is None or len(wide) < 8 * len(saturated):
            raise _fault(file, f"entry {name!r} lacks its Zip64 sizes")
        for place, i in enumerate(saturated):
            (values[i],) = struct.unpack_from("<Q", wide, 8 * place)
    return values[0], values[1], values[2]


def _locate(file: MappedFile, central: _Central, limit: int) -> Entry:
    """Check an entry's name and local header, and find its data."""
    try:
        name = central.name.decode("utf-8" if central.flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise _fault(file, f"the entry name {central.name!r} is not text") from None
    parts = name.split("/")
    odd = not name.isprintable() or len(name) > MAX_NAME_LENGTH
    if (
        odd
        or len(parts) < 2
        or "\\" in name
        or "\0" in name
        or not set(parts).isdisjoint({"", ".", ".."})
    ):
        raise _fault(file, f"the entry name {name!r} is not a plain path below a root folder")
    local_name, offset = local_data_offset(file, central.header_offset)
    if local_name != central.name:
        raise _fault(file, f"entry {name!r} is called {local_name!r} in its local header")
    if offset + central.size > limit:
        raise _fault(
            file,
            f"entry {name!r} of {central.size} bytes at byte {offset} runs past byte {limit}, "
            "where the data ends",
        )
    header = _LOCAL.unpack(file.read(central.header_offset, _LOCAL.size))
    flags, method, crc32, packed, size = header[2], header[3], *header[6:9]
    if method != 0 or flags & ~(_DATA_DESCRIPTOR | _UTF8):
        raise _fault(file, f"entry {name!r} is compressed or encrypted in its local header")
    unset = {0} if flags & _DATA_DESCRIPTOR else set()
    if crc32 not in {central.crc32, *unset} or any(
        value not in {central.size, _MAX32, *unset} for value in (packed, size)
    ):
        raise _fault(file, f"entry {name!r} has another size or CRC in its local header")
    return Entry(name, central.header_offset, offset, central.size, central.crc32)


def _check_overlaps(file: MappedFile, entries: dict[str, Entry]) -> None:
    previous: Entry | None = None
    for entry in sorted(entries.values(), key=lambda entry: entry.header_offset):
        if previous is not None and entry.header_offset < previous.offset + previous.size:
            raise _fault(file, f"entries {previous.name!r} and {entry.name!r} overlap")
        previous = entry
