"""The strict reader of GGUF files: what it reads, and each fault by its name."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from converter import gguf_bytes as raw
from converter.gguf_bytes import array, number, raw_gguf, sound, tensor, text, value
from converter.gguf_files import gguf_file
from llama2q.converter.gguf_file import MAX_ELEMENTS, MAX_ENTRIES, GgufFile
from llama2q.converter.gguf_types import TYPES
from llama2q.errors import (
    CheckpointNotFoundError,
    ClosedError,
    ShardFormatError,
    TruncatedShardError,
)


def read_all(path: Path) -> None:
    """Open a file and touch all that it gives."""
    with GgufFile(path) as file:
        for entry in file.tensors.values():
            rows = entry.rows()
            assert rows.nbytes == entry.nbytes
            assert not rows.flags.writeable
            rows.sum()
            entry.release()


def message_of(path: Path) -> str:
    """Return the message of a named fault; "" for a sound file."""
    try:
        read_all(path)
    except (ShardFormatError, TruncatedShardError) as error:
        return str(error)
    return ""


def refused(path: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        read_all(path)


def test_every_type_of_value(tmp_path: Path) -> None:
    with GgufFile(sound(tmp_path / "x.gguf")) as file:
        values = dict(file.values)
        assert values.pop("general.architecture") == "llama"
        assert values.pop("texts") == (b"a", b"", "\u4e16".encode())
        assert np.array_equal(values.pop("numbers"), np.array([0.5, -2], np.float32))
        assert np.array_equal(values.pop("flags"), [True, False])
        assert values == {f"one.{kind}": 1 for kind in range(13) if kind not in (8, 9)}
        assert type(values[f"one.{raw.BOOL}"]) is bool
        assert type(values[f"one.{raw.F32}"]) is float
        assert file.tensors["a"].shape == (2, 16)
        assert file.tensors["b"].shape == (32,)
        assert np.array_equal(file.tensors["b"].rows().view("<f4")[0], np.arange(32, 64))


def test_agrees_with_the_package_gguf(mini_checkpoint: Path, tmp_path: Path) -> None:
    kinds = {
        "": GGMLQuantizationType.Q4_0,
        "output": GGMLQuantizationType.Q6_K,
        "tok": GGMLQuantizationType.BF16,
        "wv": GGMLQuantizationType.Q8_0,
    }
    path = gguf_file(tmp_path / "x.gguf", mini_checkpoint, kinds)
    other = GGUFReader(path)
    with GgufFile(path) as file:
        fields = {n: f.contents() for n, f in other.fields.items() if not n.startswith("GGUF.")}
        assert fields.keys() == file.values.keys()
        for name, expected in fields.items():
            found = file.values[name]
            if isinstance(found, tuple):
                assert [entry.decode() for entry in found] == expected
            else:
                assert np.array_equal(found, expected), name
        assert [entry.name for entry in other.tensors] == list(file.tensors)
        for entry in other.tensors:
            mine = file.tensors[entry.name]
            assert mine.shape == tuple(reversed(entry.shape.tolist()))
            assert (mine.type.name, mine.nbytes) == (entry.tensor_type.name, entry.n_bytes)
            assert np.array_equal(mine.rows().reshape(-1), entry.data.reshape(-1).view(np.uint8))


def test_types_are_those_of_the_package() -> None:
    for number_, kind in TYPES.items():
        there = GGMLQuantizationType(number_)
        assert there.name == kind.name
        assert GGML_QUANT_SIZES[there] == (kind.block, kind.block_bytes)


def test_other_versions(tmp_path: Path) -> None:
    read_all(raw_gguf(tmp_path / "2.gguf", tensors=[tensor()], version=2))
    for version, match in (
        (1, "has GGUF version 1; expected 2 or 3"),
        (4, "has GGUF version 4"),
        (3 << 24, "is a big-endian GGUF file"),
    ):
        refused(raw_gguf(tmp_path / "x.gguf", version=version), ShardFormatError, match)


def test_alignment(tmp_path: Path) -> None:
    def write(alignment: int, kind: int = raw.U32, offset: int = 256) -> Path:
        return raw_gguf(
            tmp_path / "x.gguf",
            [value("general.alignment", kind, number(kind, alignment))],
            [tensor("a", (32,), 0, offset)],
            data=bytes(offset + 128),
            alignment=alignment or 1,
        )

    for alignment in (8, 64, 256):
        with GgufFile(write(alignment)) as file:
            assert file.tensors["a"].offset % alignment == 0
    refused(write(64, offset=32), ShardFormatError, "a lies at byte 32 of the data")
    for alignment in (0, 4, 24, 1 << 17):
        refused(write(alignment), ShardFormatError, "expected a power of two from 8")
    refused(write(32, raw.F32), ShardFormatError, "general.alignment is 32.0")


def test_a_cut_anywhere_is_named(tmp_path: Path) -> None:
    path = sound(tmp_path / "x.gguf")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ShardFormatError if 0 < size < 4 else TruncatedShardError):
            read_all(path)


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_changed_byte_anywhere_is_named_or_harmless(tmp_path: Path, change: int) -> None:
    path = sound(tmp_path / "x.gguf")
    data = path.read_bytes()
    n_refused = 0
    for place in range(len(data) - len(raw.DATA)):
        path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
        message = message_of(path)
        assert message.isprintable()
        assert len(message) < 400
        n_refused += bool(message)
    assert n_refused > 200


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic(data: bytes) -> None:
    path = _scratch()
    path.write_bytes(b"GGUF\3\0\0\0" + data)
    assert message_of(path) or data[:16] == bytes(16), "sound only where there is nothing"


@given(st.lists(st.tuples(st.integers(0, 700), st.sampled_from([0, 1, 2, 8, 9, 127, 255])),
                min_size=1, max_size=8))  # fmt: skip
def test_several_changed_bytes(changes: list[tuple[int, int]]) -> None:
    path = _scratch()
    data = bytearray(sound(path).read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    path.write_bytes(data)
    assert message_of(path).isprintable()


_FOLDERS: list[Path] = []


@pytest.fixture(autouse=True)
def _scratch_folder(tmp_path: Path) -> None:
    _FOLDERS[:] = [tmp_path]


def _scratch() -> Path:
    return _FOLDERS[0] / "scratch.gguf"


HUGE = 2**63


@pytest.mark.parametrize(
    ("values", "tensors", "error", "match"),
    [
        ([value("k", raw.ARRAY, array(raw.U8, HUGE))], [], ShardFormatError, "claims 922337203685"),
        ([value("k", raw.ARRAY, array(raw.U8, MAX_ELEMENTS))], [], TruncatedShardError, "in k"),
        ([value("k", raw.ARRAY, array(raw.STRING, MAX_ELEMENTS))], [], TruncatedShardError, "in k"),
        ([value("k", raw.ARRAY, array(raw.ARRAY, 1, array(raw.U8, 0)))], [], ShardFormatError,
         "k is an array of arrays"),
        ([value("k", 13, b"")], [], ShardFormatError, "k is a value of the type number 13"),
        ([value("k", raw.BOOL, b"\x02")], [], ShardFormatError, "k is 2; expected 0 or 1"),
        ([value("k", raw.STRING, struct.pack("<Q", HUGE))], [], ShardFormatError, "k claims 9223"),
        ([value("k", raw.STRING, struct.pack("<Q", 9999))], [], TruncatedShardError, "in k"),
        ([value("k", raw.U8, b"\0")] * 2, [], ShardFormatError, "has the key k twice"),
        ([value("", raw.U8, b"\0")], [], ShardFormatError, "the name of a key is ''"),
        ([value("\x1b[2J", raw.U8, b"\0")], [], ShardFormatError, r"the name of a key is '\\x1b"),
        ([value("k" * 201, raw.U8, b"\0")], [], ShardFormatError, "claims 201 bytes"),
        ([], [tensor(), tensor(offset=128)], ShardFormatError, "has the tensor a twice"),
        ([], [tensor("a"), tensor("b")], ShardFormatError, "[ab] overlaps [ab]"),
        ([], [tensor("a"), tensor("b", (8,), offset=96)], ShardFormatError, "b overlaps a"),
        ([], [tensor("a", offset=4)], ShardFormatError, "lies at byte 4 of the data"),
        ([], [tensor("a", offset=256)], TruncatedShardError, "is truncated"),
        ([], [tensor("a", offset=2**64 - 32)], TruncatedShardError, "is truncated"),
        ([], [tensor("a", (2**40, 2**40))], TruncatedShardError, "is truncated"),
        ([], [tensor("a", (2**41,))], ShardFormatError, "has the shape"),
        ([], [tensor("a", (0, 4))], ShardFormatError, r"has the shape \(4, 0\)"),
        ([], [tensor("a", n_dims=0)], ShardFormatError, "has 0 dimensions"),
        ([], [tensor("a", n_dims=2**32 - 1)], ShardFormatError, "has 4294967295 dimensions"),
        ([], [tensor("a", kind=4)], ShardFormatError, "has the type number 4"),
        ([], [tensor("a", (33,), kind=2)], ShardFormatError, "rows of 33; expected a multiple of"),
        ([], [tensor("\u00e9")], ShardFormatError, "the name of a tensor is"),
    ],
)  # fmt: skip
def test_faults(
    tmp_path: Path, values: list[bytes], tensors: list[bytes], error: type[Exception], match: str
) -> None:
    refused(raw_gguf(tmp_path / "x.gguf", values, tensors), error, match)


@pytest.mark.parametrize("what", ["n_tensors", "n_values"])
def test_counts(tmp_path: Path, what: str) -> None:
    for count in (MAX_ENTRIES + 1, 2**64 - 1):
        path = raw_gguf(tmp_path / "x.gguf", **{what: count})  # type: ignore[arg-type]
        refused(path, ShardFormatError, f"claims {count} (tensors|keys)")
    path = raw_gguf(tmp_path / "x.gguf", data=b"", alignment=8, **{what: MAX_ENTRIES})  # type: ignore[arg-type]
    refused(path, TruncatedShardError, "ends inside its header")


def test_small_files_that_claim_much_cost_little(tmp_path: Path) -> None:
    """43 bytes once kept the package gguf busy without end."""
    entry = text("k") + struct.pack("<I", raw.ARRAY)
    path = tmp_path / "x.gguf"
    started = time.process_time()
    for item in (raw.U8, raw.F64, raw.STRING, raw.ARRAY):
        for count in (2**32, 2**62, 2**64 - 1):
            path.write_bytes(
                b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + struct.pack("<IQ", item, count)
            )
            refused(path, ShardFormatError, "k claims")
    assert time.process_time() - started < 5


def test_a_header_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    with path.open("wb") as file:
        file.write(head + value("a", raw.STRING, struct.pack("<Q", 1 << 25)))
        file.truncate(1 << 26)
    refused(path, ShardFormatError, "goes beyond 33554432 bytes, in a")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<!DOCTYPE html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"lmgg" + bytes(40), "starts with b'lmgg'; expected a GGUF file"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(path, ShardFormatError, match)


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path, CheckpointNotFoundError, "is not a file")
    (tmp_path / "x.gguf").touch()
    refused(tmp_path / "x.gguf", TruncatedShardError, "is empty")


def test_closed(tmp_path: Path) -> None:
    with GgufFile(sound(tmp_path / "x.gguf")) as file:
        rows = file.tensors["a"].rows()
    assert rows.sum() > 0
    with pytest.raises(ClosedError):
        file.tensors["a"].rows()
