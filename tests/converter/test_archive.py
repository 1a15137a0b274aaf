"""The zip directory: what it refuses, by name."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converter.pth_files import (
    archive,
    dict_pickle,
    refused,
    tensor,
)
from llama2q.converter.pth import ShardFile
from llama2q.converter.pth_writer import write_pth
from llama2q.errors import (
    CorruptShardError,
    ShardFormatError,
)

GOOD = dict_pickle(a=tensor())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


def test_duplicate_names(path: Path) -> None:
    archive(path, GOOD, extra={"archive/data.pkl": GOOD})
    refused(path, ShardFormatError, r"two entries are named 'archive/data\.pkl'")


def test_compressed_entries(path: Path) -> None:
    archive(path, GOOD, compression=zipfile.ZIP_DEFLATED)
    refused(path, ShardFormatError, "compressed")


def test_encrypted_entries(path: Path) -> None:
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(path, ShardFormatError, "encrypted")


@pytest.mark.parametrize("name", ["/x", "archive/../x", "archive//x", "x", "archive\\x/y", "a/"])
def test_names_that_are_no_plain_paths(path: Path, name: str) -> None:
    archive(path, GOOD, extra={name: b""})
    refused(path, ShardFormatError, "plain path")


def test_two_roots(path: Path) -> None:
    archive(path, GOOD, extra={"other/data.pkl": GOOD})
    refused(path, ShardFormatError, "roots")


def test_an_archive_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("folder/readme.txt", "hello")
    refused(path, ShardFormatError, r"without folder/data\.pkl")


def test_a_torchscript_program(path: Path) -> None:
    archive(path, GOOD, extra={"archive/constants.pkl": b""})
    refused(path, ShardFormatError, "TorchScript")


def test_big_endian(path: Path) -> None:
    archive(path, GOOD, extra={"archive/byteorder": b"big"})
    refused(path, ShardFormatError, "byte order b'big'")


def central_at(data: bytes, name: bytes) -> int:
    return data.rindex(name) - 46


@pytest.mark.parametrize(
    ("offset", "form", "value", "match"),
    [
        (20, "<L", 23, "is stored as 23 bytes"),
        (24, "<L", 0xFFFFFFFF, "lacks its Zip64 sizes"),
        (28, "<H", 60000, "malformed"),
        (30, "<H", 3, "malformed|disagree|follow"),
        (34, "<H", 1, "volume 1"),
        (42, "<L", 1, "no local header at byte 1"),
        (42, "<L", 0, "is called"),
        (42, "<L", 0x7FFFFFFF, "outside the file"),
        (16, "<L", 1, "another size or CRC in its local header"),
    ],
)
def test_directory_entries(path: Path, offset: int, form: str, value: int, match: str) -> None:
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, central_at(data, b"archive/data/0") + offset, value)
    path.write_bytes(data)
    refused(path, ShardFormatError, match)


def test_an_entry_that_runs_into_the_directory(path: Path) -> None:
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    at = central_at(data, b"archive/data/0")
    struct.pack_into("<2L", data, at + 20, 500, 500)
    path.write_bytes(data)
    refused(path, ShardFormatError, "where the data ends")


def test_overlapping_entries(path: Path) -> None:
    """The first entry grows over the header of the second."""
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    at = central_at(data, b"archive/data.pkl")
    for place in (at + 20, 18):
        struct.pack_into("<2L", data, place, len(GOOD) + 10, len(GOOD) + 10)
    path.write_bytes(data)
    refused(path, ShardFormatError, "overlap")


@pytest.mark.parametrize(
    ("offset", "form", "value", "match"),
    [
        (-22 + 4, "<H", 1, "multi-volume"),
        (-22 + 8, "<H", 1, "multi-volume"),
        (-22 + 10, "<H", 3, "multi-volume"),
        (-22 + 12, "<L", 7, "should end at byte"),
        (-22 + 16, "<L", 7, "should end at byte"),
        (-22 + 20, "<H", 5, "bytes follow"),
    ],
)
def test_end_records(path: Path, offset: int, form: str, value: int, match: str) -> None:
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, len(data) + offset, value)
    path.write_bytes(data)
    refused(path, ShardFormatError, match)


def test_counts_that_disagree_with_the_directory(path: Path) -> None:
    archive(path, GOOD)
    data = bytearray(path.read_bytes())
    for count, match in ((1, "bytes follow the last entry"), (3, "ends inside entry 2")):
        struct.pack_into("<2H", data, len(data) - 14, count, count)
        path.write_bytes(data)
        refused(path, ShardFormatError, match)


def test_bytes_before_and_after_the_archive(path: Path) -> None:
    archive(path, GOOD)
    good = path.read_bytes()
    path.write_bytes(good + b"\0")
    refused(path, ShardFormatError, "bytes follow the archive's end record")
    path.write_bytes(b"PK\3\4" + good)
    refused(path, ShardFormatError, "should end at byte")


def test_damaged_data(path: Path) -> None:
    write_pth(path, {"a": np.arange(6, dtype=np.float32), "b": np.ones(3, np.float32)}, "f32")
    with ShardFile(path) as shard:
        at, pickled_at = shard.tensors["a"].offset, next(iter(shard.entries.values())).offset
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[at + 5] ^= 1
    path.write_bytes(damaged)
    with ShardFile(path) as shard:
        shard.check_crc("b")
        with pytest.raises(CorruptShardError, match=r"consolidated\.00\.pth is damaged: a "):
            shard.check_crc("a")
    damaged = bytearray(good)
    damaged[pickled_at + 20] ^= 1
    path.write_bytes(damaged)
    refused(path, CorruptShardError, r"data\.pkl fails its CRC")
